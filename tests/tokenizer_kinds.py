"""Tokenizers built as the published ones are, with a few thousand ids, trained on made-up text."""

import functools

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from robustjax.data.tokens import END_OF_TEXT, Tokenizer
from tests.conftest import SENTENCES

VOCAB = 3_000
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SCRIPTS = (
    "北京市朝阳区",
    "Привет, мир",
    "γειά σου",
    "שלום עולם",
    "नमस्ते दुनिया",
    "こんにちは",
    "한국어",
)
MARKS = (
    "e\u0301",
    "\u0308",
    "a\u0323\u0301",
    "=\u0338",
    "\u1112\u1161\u11ab",
    "क\u093c",
    "o\u0302",
)
RUNS = (" ", "-", "=", "_", "\n", "\t", "*", ".", "\r\n", "#", "'", "0")


def made_up_texts(count=1_500, seed=0):
    """Sentences of a few hundred made-up words, with runs, numbers, marks and other scripts."""
    rng = np.random.default_rng(seed)
    syllables = [c + v + d for c in "bdfgklmnprst" for v in "aeiou" for d in ("", "n", "s")]
    words = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(600)]
    words += [word.capitalize() for word in words[:200]]
    words += " ".join(SENTENCES).split()
    texts = []
    for _ in range(count):
        parts = list(rng.choice(words, rng.integers(4, 16)))
        extra = rng.integers(0, 6)
        if extra == 0:
            parts.append(str(rng.choice(RUNS)) * int(rng.integers(2, 12)))
        elif extra == 1:
            parts.append(f"{rng.integers(10_000)}.{rng.integers(100)}")
        elif extra == 2:
            parts.append(str(rng.choice(SCRIPTS + MARKS)))
        rng.shuffle(parts)
        glue = "" if extra == 3 else " "
        texts.append(glue.join(parts) + str(rng.choice([".", "!", "", "\n", "\n\n", "'s", "?"])))
    return texts


def _trained(normalizer, pre_tokenizer, post_processor, special):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = post_processor
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB,
        show_progress=False,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(made_up_texts(), trainer)
    return backend


@functools.cache
def neox():
    """As Pythia's: NFC, GPT-2's pattern, and runs of 2 to 24 spaces as added tokens."""
    backend = _trained(
        normalizers.NFC(),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        processors.ByteLevel(trim_offsets=True),
        [END_OF_TEXT, "<|padding|>"],
    )
    backend.add_tokens(
        [AddedToken(" " * n, normalized=True, special=False) for n in range(24, 1, -1)]
    )
    return Tokenizer(backend, {"eos_token": END_OF_TEXT})


@functools.cache
def qwen2():
    """As Qwen2's: NFC, a pattern of its own with single digits, and added special tokens."""
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated", invert=False)
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend = _trained(
        normalizers.NFC(),
        pre_tokenizers.Sequence([split, bytes_only]),
        processors.ByteLevel(trim_offsets=False),
        [],
    )
    special = [END_OF_TEXT, "<|im_start|>", "<|im_end|>"]
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    backend.add_tokens([AddedToken("<tool_call>", normalized=False, special=False)])
    return Tokenizer(backend, {"eos_token": "<|im_end|>", "pad_token": END_OF_TEXT})


KINDS = {"neox": neox, "qwen2": qwen2}
