"""Tiny victims, prompts and attacks, and the random numbers of jax written out in NumPy."""

import dataclasses

import jax
import numpy as np
import tokenizers

from robustjax.attacks.frame import BatchRun
from robustjax.attacks.gcg import GCG
from robustjax.attacks.search import SearchConfig, plan, prepare
from robustjax.data.prompts import ANSWER_PROMPT, ChunkKind, Example
from robustjax.data.tokens import Tokenizer
from robustjax.evaluation.evaluate import attack_examples
from robustjax.models.gpt_neox import GPTNeoXConfig
from robustjax.models.transformer import Definition
from robustjax.models.victim import Victim, place_params
from robustjax.runtime.mesh import AxisRules, MeshConfig, make_mesh
from tests.models.tiny import make_params

INSERT = (ChunkKind.IMMUTABLE, ChunkKind.PERTURBABLE, ChunkKind.IMMUTABLE)
OVERWRITE = (ChunkKind.IMMUTABLE, ChunkKind.IMMUTABLE, ChunkKind.OVERWRITABLE, ChunkKind.IMMUTABLE)

# Few shapes, so that the tests share compiled programs.
CONFIG = SearchConfig(batch_size=4, edges=(48, 96))
ATTACK = GCG(num_iterations=3, num_tokens=4, num_candidates=16, top_k=8, candidate_chunk=8)

TEXTS = (
    "The quick brown fox jumps over the lazy dog",
    "Please send the report before Friday",
    "Win a free prize now! Click the link below",
    "A scaling law relates the loss of a model",
    "Zürich, naïve café — 1,234.56 € in the mountains",
    "which word is longer",
    "the meeting was moved to half past nine, it rains",
    "enter your account number and the compute spent",
)

# What follows the slot has 9 to 12 tokens at 0.9 and at 0.0: one shape.
TEXTS_BY_POSITION = {
    1.0: TEXTS[:2],
    0.9: (
        "Please send the report before Friday; the meeting was moved to half past nine.",
        "Please send the report before Friday; the meeting was moved to half past eight.",
    ),
    0.0: ("which word is longer", "the lazy dog"),
}


def make_victim(
    tokenizer,
    *,
    classes=2,
    context=512,
    vocab=512,
    mesh=None,
    width=16,
    weights=1.0,
    head="classifier",
    config=None,
    scanned=False,
):
    """A victim with large, frozen weights, so that tokens matter."""
    config = config or GPTNeoXConfig(
        vocab=vocab,
        width=width,
        layers=2,
        heads=2,
        hidden=2 * width,
        context=context,
        rotary_fraction=0.5,
    )
    definition = Definition(config, head=head, num_classes=classes, scanned=scanned)
    params = jax.tree.map(lambda leaf: weights * np.asarray(leaf), make_params(definition))
    mesh = make_mesh(mesh or MeshConfig())
    params = place_params(params, definition, mesh, AxisRules())
    return Victim("tiny", "tiny", definition, params, tokenizer, mesh, batch_size=4)


def make_examples(victim, texts=TEXTS, kinds=INSERT, first_id=10):
    """Examples whose labels are the victim's own answers, so that all of them are attacked."""
    examples = []
    for index, text in enumerate(texts):
        if kinds is OVERWRITE:
            instructions, content = "Compare the words.\n\n", (f"Word: {text}\n---\n", "")
        else:
            instructions, content = "Is it spam?\n\n", (text,)
        examples.append(
            Example(first_id + index, instructions, content, ANSWER_PROMPT, 0, 1, " A", " B")
        )
    if victim.definition.head == "lm":
        return examples
    answers = victim.logits([example.text for example in examples]).argmax(-1)
    classes = victim.definition.num_classes
    return [
        dataclasses.replace(example, label=int(label), target_label=int(label + 1) % classes)
        for example, label in zip(examples, answers, strict=True)
    ]


def make_run(victim, examples, attack, kinds=INSERT, seed=0, config=CONFIG, companion=None):
    """The one batch that these examples make."""
    prompts, failures = prepare(victim, examples, kinds, attack, seed)
    assert not failures
    (batch,) = plan(prompts, config)
    return BatchRun(victim, batch, config.batch_size, seed, companion)


def attack_all(victim, examples, attack, kinds=INSERT, **options):
    """Records by example id."""
    records, _ = attack_examples(victim, examples, kinds, attack, **{"config": CONFIG} | options)
    return {record.example_id: record for record in records}


def starts_of(victim, examples, attack, kinds=INSERT, seed=0):
    """The slots that a search starts from, by example id."""
    prompts, _ = prepare(victim, examples, kinds, attack, seed)
    return {prompt.example.example_id: prompt.slot for prompt in prompts}


def letters_tokenizer(letters="abcdefghijkl", special="<|endoftext|>", extra=()):
    """One token a character (and what `extra` names), nothing merges: every slot is clean."""
    vocab = {special: 0} | {token: i for i, token in enumerate([*letters, *extra], 1)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token=letters[0]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens([special])
    return Tokenizer(backend, {"eos_token": special})


def neox_like_tokenizer(texts, vocab_size=480):
    """As GPT-NeoX's: text is normalised to NFC, and runs of 2 to 24 spaces are added tokens."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.normalizer = tokenizers.normalizers.NFC()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(texts, trainer)
    runs = [
        tokenizers.AddedToken(" " * n, normalized=True, special=False) for n in range(24, 1, -1)
    ]
    backend.add_tokens(runs)
    return Tokenizer(backend, {"eos_token": "<|endoftext|>"})


def threefry(key, counts):
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011): uint32 [..., 2] by [..., 2]."""
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    k0, k1 = (np.asarray(key[..., i], np.uint32) for i in (0, 1))
    ks = (k0, k1, k0 ^ k1 ^ np.uint32(0x1BD11BDA))
    x0, x1 = (np.asarray(counts[..., i], np.uint32) + ks[i] for i in (0, 1))
    for group in range(5):
        for rotation in rotations[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))
            x1 = x1 ^ x0
        x0 = x0 + ks[(group + 1) % 3]
        x1 = x1 + ks[(group + 2) % 3] + np.uint32(group + 1)
    return np.stack([x0, x1], -1)


def seed_key(seed):
    """`jax.random.key` of a uint32."""
    return np.array([0, seed], np.uint32)


def fold_in(key, numbers):
    """`jax.random.fold_in` of one key with one or many uint32 numbers."""
    numbers = np.asarray(numbers, np.uint32)
    with np.errstate(over="ignore"):
        return threefry(key, np.stack([np.zeros_like(numbers), numbers], -1))


def random_bits(keys):
    """`jax.random.bits(key, dtype=uint32)` of each key."""
    with np.errstate(over="ignore"):
        words = threefry(keys, np.zeros(keys.shape, np.uint32))
    return words[..., 0] ^ words[..., 1]


def randint(key, span):
    """`jax.random.randint(key, (), 0, span)`."""
    high, low = (int(random_bits(fold_in(key, number))) for number in (0, 1))
    factor = (2**16 % span) ** 2 % span
    return ((high % span) * factor + low % span) % span


def gumbel(key, count):
    """`jax.random.gumbel(key, (count,))`, the logarithms in float64."""
    words = fold_in(key, np.arange(count))
    bits = (words[:, 0] ^ words[:, 1]) >> np.uint32(9) | np.uint32(0x3F800000)
    tiny = np.finfo(np.float32).tiny
    uniform = np.maximum(tiny, (bits.view(np.float32) - np.float32(1)) + tiny)
    return -np.log(-np.log(uniform.astype(np.float64)))
