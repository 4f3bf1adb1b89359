"""Tokenizers built as the published ones are, with a few thousand ids, trained on made-up text."""

import functools
import json

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


SPACE = "\u2581"
LLAMA_SPECIAL = ["<unk>", "<s>", "</s>"]


def _marking(normalizer, pre_tokenizer, decoder):
    """Words that begin with a mark for the space before them, single digits, no bytes."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(SPACE, "first"), pre_tokenizers.Digits(individual_digits=True)]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB,
        show_progress=False,
        special_tokens=LLAMA_SPECIAL,
        initial_alphabet=[chr(code) for code in range(ord("!"), ord("~") + 1)],
    )
    backend.train_from_iterator(made_up_texts(), trainer)
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
    backend.decoder = decoder
    return Tokenizer(backend, {"eos_token": "</s>", "unk_token": "<unk>"})


@functools.cache
def llama():
    """As Llama-2's and the first Mistral's: a normalizer puts a mark before each text."""
    return _marking(
        normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]),
        None,
        decoders.Sequence(
            [
                decoders.Replace(SPACE, " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        ),
    )


@functools.cache
def metaspace():
    """As transformers writes Llama's now: the pre-tokenizer puts the mark."""
    pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "first")
    return _marking(None, pre_tokenizer, decoders.Metaspace(SPACE, "first"))


@functools.cache
def metaspace_always():
    """The same, and a mark after each special token too."""
    pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "always", split=False)
    return _marking(None, pre_tokenizer, decoders.Metaspace(SPACE, "always"))


KINDS = {"neox": neox, "qwen2": qwen2}
"""Byte-level: a text has the same tokens wherever it stands, if no token reaches into it."""

MARKING = {"llama": llama, "metaspace": metaspace, "metaspace_always": metaspace_always}
"""With a mark at the beginning of a text."""


class Plainly:
    """What a kind makes of texts, without asking how the package tells parts from whole ones."""

    def __init__(self, kind):
        self.tokenizer = (KINDS | MARKING)[kind]()
        self._backend = self._inside = self.tokenizer._backend
        self._marks_after = ()
        if kind in MARKING:
            self._inside = _unmarked(kind)
            self._marks_after = ("",) if kind == "metaspace" else ("", *LLAMA_SPECIAL)

    def text(self, ids):
        if not self._marks_after:
            return self.tokenizer.decode([ids])[0]
        return "".join(map(self._backend.id_to_token, ids)).replace(SPACE, " ")

    def whole(self, text):
        return self._backend.encode(text, add_special_tokens=False).ids

    def opening(self, before):
        """Ids of a text that another one follows."""
        if before in self._marks_after or before.endswith(self._marks_after[1:]):
            return [*self.whole(before), self._backend.token_to_id(SPACE)]
        return self.whole(before)

    def inside(self, text):
        """Ids of a text, without special tokens, that follows another one."""
        return self._inside.encode(text, add_special_tokens=False).ids


def _unmarked(kind):
    """The same tokenizer, but that it puts no mark anywhere."""
    description = json.loads(MARKING[kind]()._backend.to_str())
    if kind == "llama":
        del description["normalizer"]["normalizers"][0]
    else:
        description["pre_tokenizer"]["prepend_scheme"] = "never"
    return tokenizers.Tokenizer.from_str(json.dumps(description))
