"""The tokenizer: text to ids and back, in batches, and exactly.

One rule holds everywhere (Howe et al. 2024, arXiv 2407.18213): no special tokens are added, nothing
is truncated, nothing is padded. Padding belongs to `robustjax.data.batching`.

Some tokenizers mark the beginning of a text (`robustjax.data.beginnings`). For those alone it makes
a difference whether a text is whole (`encode`), or the first or a later part of a longer one
(`encode_opening`, `encode_inside`).
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int

from robustjax.data import beginnings, cuts
from robustjax.errors import UserError

END_OF_TEXT = "<|endoftext|>"

_BYTE_ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
_NAMED_SPECIALS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class Tokenizer:
    """A Hugging Face fast tokenizer without its side effects.

    Text that spells a special token (`<|endoftext|>`) is read as that token, as Hugging Face does.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any]):
        """Wraps a Rust tokenizer.

        Args:
            backend: the tokenizer; its truncation and padding are switched off.
            config: the content of `tokenizer_config.json`, which names the special tokens.

        Raises:
            UserError: `config` names neither a pad nor an end-of-sequence token that exists; or
                the tokenizer marks the beginning of texts and knows no character by itself.
        """
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._config = config
        texts = {name: _token_text(config.get(name)) for name in _NAMED_SPECIALS}
        self.named_specials = {name: text for name, text in texts.items() if text is not None}
        ids = {name: backend.token_to_id(text) for name, text in self.named_specials.items()}
        pad_id = ids.get("pad_token")
        self.eos_id: int | None = ids.get("eos_token")
        if pad_id is None:
            pad_id = self.eos_id
        if pad_id is None:
            raise UserError(
                "the tokenizer names no pad_token and no eos_token that it knows: "
                "set one in tokenizer_config.json"
            )
        self.pad_id: int = pad_id
        flagged = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self.special_ids: frozenset[int] = frozenset(
            flagged | {i for i in ids.values() if i is not None}
        )
        self._neighbours = _neighbours(backend)

    @classmethod
    def load(cls, folder_or_name: str | Path) -> "Tokenizer":
        """Loads a tokenizer from a local folder, or by its name on the Hugging Face hub.

        A `tokenizer.json` is read as it stands; a folder with an older format only goes through
        transformers' conversion.

        Raises:
            UserError: nothing loadable is there.
        """
        folder = Path(folder_or_name).expanduser()
        if not folder.is_dir():
            folder = _download(str(folder_or_name))
        if (folder / "tokenizer.json").is_file():
            try:
                backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            except Exception as error:  # the Rust library raises plain Exception
                raise UserError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
            return cls(backend, _read_config(folder))
        return cls._convert(folder)

    @classmethod
    def _convert(cls, folder: Path) -> "Tokenizer":
        if not any((folder / name).is_file() for name in ("vocab.json", "tokenizer.model")):
            raise UserError(f"{folder} holds no tokenizer.json: give a folder with a tokenizer")
        from transformers import AutoTokenizer  # slow to import, and seldom needed

        try:
            slow = AutoTokenizer.from_pretrained(folder)
            backend = tokenizers.Tokenizer.from_str(slow.backend_tokenizer.to_str())
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
        return cls(backend, _read_config(folder))

    @property
    def chat_template(self) -> Any:
        """Its own Jinja template of a conversation (or several by name), None if it has none."""
        return self._config.get("chat_template")

    def with_chat_template(self, template: str) -> "Tokenizer":
        """The same tokenizer with another template of a conversation."""
        return Tokenizer(self._backend, self._config | {"chat_template": template})

    @property
    def vocab_size(self) -> int:
        """Size of the base vocabulary, without tokens added to it later."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    @functools.cached_property
    def num_ids(self) -> int:
        """Highest id + 1: the least number of rows an embedding must have."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def allowed_attack_ids(self) -> Int[np.ndarray, " V"]:
        """Ids an attack may use, increasing: the base vocabulary without special tokens."""
        base = self._backend.get_vocab(with_added_tokens=False).values()
        return np.array(sorted(set(base) - self.special_ids), dtype=np.int32)

    @functools.cached_property
    def standalone_ids(self) -> Int[np.ndarray, " V"]:
        """The allowed attack ids whose own text is tokenised to just them, increasing."""
        rows = self.allowed_attack_ids[:, None].tolist()
        ids = self.encode_inside(self.decode(rows))
        return np.array([row[0] for row, own in zip(rows, ids, strict=True) if own == row], int)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer in canonical JSON: when equal, the same text has the same ids."""
        canonical = json.dumps(json.loads(self._backend.to_str()), sort_keys=True)
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()

    @functools.cached_property
    def cuts_before_spaces(self) -> bool:
        """Whether texts may be tokenised piece by piece; see `robustjax.data.cuts`."""
        return cuts.cuts_before_spaces(json.loads(self._backend.to_str()))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text: no special tokens added, no truncation, no padding."""
        if isinstance(texts, str):
            raise ValueError("texts is one string: give a list of strings")
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_opening(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids that each text has before another one, the beginning's mark included."""
        if not self._neighbours:
            return self.encode(texts)
        return beginnings.before_a_neighbour(self.encode, self._neighbours, texts)

    def encode_inside(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids that each text has behind another one."""
        if not self._neighbours:
            return self.encode(texts)
        return beginnings.behind_a_neighbour(self.encode, self._neighbours, texts)

    def decode(self, rows: Sequence[Sequence[int] | np.ndarray] | np.ndarray) -> list[str]:
        """Returns the text of each row of ids, as they stand behind others.

        Special tokens, and ids beyond the vocabulary (padded embedding rows), decode to nothing.
        Spaces are not cleaned up, nor left out in front. Bytes that form no character become
        U+FFFD.
        """
        plain: list[list[int]] = (
            rows.tolist() if isinstance(rows, np.ndarray) else [list(map(int, r)) for r in rows]
        )
        text_of = self._whole_texts.__getitem__
        before, ids = self._before
        texts: dict[int, str] = {}
        others = []
        for number, row in enumerate(plain):
            try:
                texts[number] = "".join(map(text_of, row))
            except KeyError:
                others.append(number)
        behind = [[*ids, *plain[number]] for number in others]
        decoded = self._backend.decode_batch(behind, skip_special_tokens=True)
        texts |= {i: text.removeprefix(before) for i, text in zip(others, decoded, strict=True)}
        return [texts[number] for number in range(len(plain))]

    @functools.cached_property
    def _before(self) -> tuple[str, list[int]]:
        """A text to decode rows behind, and its ids; nothing if the beginning is as any place."""
        text = next(iter(self._neighbours), "")
        return text, self.encode([text])[0]

    @functools.cached_property
    def _whole_texts(self) -> dict[int, str]:
        """Texts of the ids whose bytes are whole characters, for a decoder that joins bytes.

        Whole characters stay what they are, whatever bytes stand beside them.
        """
        if not isinstance(self._backend.decoder, tokenizers.decoders.ByteLevel):
            return {}
        ids = range(self.num_ids)
        texts = self._backend.decode_batch([[i] for i in ids], skip_special_tokens=True)
        return {i: text for i, text in zip(ids, texts, strict=True) if "\ufffd" not in text}

    def character_spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Returns which characters `[start, stop)` of its text each token of each text stands for.

        Tokens that are parts of one character share it. Of characters that normalisation composes
        only the first is counted.
        """
        encodings = self._untrimmed.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.offsets for encoding in encodings]

    @functools.cached_property
    def _untrimmed(self) -> tokenizers.Tokenizer:
        """The same without post-processor: that of some leaves spaces out of the offsets."""
        if self._backend.post_processor is None:
            return self._backend
        description = json.loads(self._backend.to_str()) | {"post_processor": None}
        return tokenizers.Tokenizer.from_str(json.dumps(description))

    def normalise(self, text: str) -> str:
        """Returns what the tokenizer makes of a text before it cuts it up (NFC, for example)."""
        normalizer = self._backend.normalizer
        if normalizer is None:
            return text
        before, _ = self._before
        normal = str(normalizer.normalize_str(before + text))
        return normal.removeprefix(normalizer.normalize_str(before)) if before else normal

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json` for transformers.AutoTokenizer."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        text = json.dumps(self._config, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def train_byte_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE tokenizer; the same texts give the same tokenizer.

    All 256 bytes are in the alphabet, so every text round-trips exactly (unless it spells the
    special token). Id 0 is `<|endoftext|>`, which also pads.

    Args:
        texts: the training texts.
        vocab_size: number of ids wanted, at least 257. When the texts hold fewer merges, the
            tokenizer has fewer: read its `vocab_size`.

    Raises:
        ValueError: `vocab_size` is too small for the bytes and the special token.
    """
    smallest = len(_BYTE_ALPHABET) + 1
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size={vocab_size}: 256 bytes and {END_OF_TEXT} need at least {smallest}"
        )
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=_BYTE_ALPHABET,
    )
    backend.train_from_iterator(texts, trainer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    return Tokenizer(backend, config)


def _neighbours(backend: tokenizers.Tokenizer) -> dict[str, int]:
    """Characters to read a text beside, if the tokenizer marks beginnings; else none."""
    parts = {name: getattr(backend, name) for name in ("normalizer", "pre_tokenizer", "decoder")}
    described = {name: json.loads(part.__getstate__()) for name, part in parts.items() if part}
    if not beginnings.marks_beginnings(described):
        return {}
    found = beginnings.neighbours(backend.token_to_id)
    if not found:
        raise UserError(
            "the tokenizer marks the beginning of a text, and knows no letter, digit or sign by "
            "itself, so that it cannot be told what a text is inside another: take another one"
        )
    return found


def _token_text(entry: Any) -> str | None:
    """Reads a special token of tokenizer_config.json: a text, or a mapping with `content`."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _read_config(folder: Path) -> dict[str, Any]:
    """Reads tokenizer_config.json; older folders name their tokens in special_tokens_map.json."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from error
        config.update({key: value for key, value in content.items() if value is not None})
    template = folder / "chat_template.jinja"  # newer folders keep it in a file of its own
    if template.is_file():
        config["chat_template"] = template.read_text(encoding="utf-8")
    return config


def _download(name: str) -> Path:
    """Fetches the tokenizer files of a hub repository into the Hugging Face cache."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "*.jinja"]
    remedy = "give an existing folder with tokenizer.json, or a hub name that can be reached"
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"tokenizer {name!r} is no folder and cannot be downloaded "
            f"({type(error).__name__}): {remedy}"
        ) from error
