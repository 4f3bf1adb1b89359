"""Tokenizers that read the beginning of a text as no other place, and what a text is inside one.

Tokenizers in the manner of SentencePiece (Llama-2's, Mistral's) write a space's mark in front of a
text, and leave out a space in front when they decode. So the tokens of a text by itself are not
those that it has behind another one, and a slot that stands inside a prompt has to be read, and
decoded, as it stands there.

**The rule.** A text is read beside a *neighbour*: a single character that is a token of its own,
and stays one there. Which neighbour makes no difference: where a token ends just at the edge, BPE
made no merge across it, and the merges on either side are those that are made there beside
anything else that leaves the edge alone. A slot beside which other tokens come out does not stand
cleanly, which the verdict on the whole prompt says (``robustjax.attacks.retokenize``).
"""

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Encode = Callable[[Sequence[str]], list[list[int]]]

# Digits first: few tokenizers merge them with anything but digits, Llama's not even with those.
_CHARACTERS = string.digits + string.punctuation + string.ascii_letters


def marks_beginnings(parts: Mapping[str, dict[str, Any]]) -> bool:
    """Whether a tokenizer may read or write the beginning of a text as no other place.

    Args:
        parts: its ``normalizer``, ``pre_tokenizer`` and ``decoder``, those that it has, as
            ``tokenizer.json`` describes them.
    """
    return any(_marks(name, part) for name, part in parts.items())


def _marks(name: str, part: dict[str, Any]) -> bool:
    inner = part.get("normalizers") or part.get("pretokenizers") or part.get("decoders") or ()
    if part["type"] == "Sequence":
        return any(_marks(name, one) for one in inner)
    if name == "normalizer":
        return bool(part["type"] == "Prepend")
    if part["type"] == "Metaspace":
        return bool(part["prepend_scheme"] != "never")
    if name == "pre_tokenizer":
        return part["type"] == "ByteLevel" and bool(part["add_prefix_space"])
    return part["type"] == "Strip" and bool(part["start"])


def neighbours(id_of: Callable[[str], int | None]) -> dict[str, int]:
    """The characters that a tokenizer knows, and can be asked to read a text beside.

    Args:
        id_of: gives a token's id, None if there is no such token.
    """
    found = {character: id_of(character) for character in _CHARACTERS}
    return {character: number for character, number in found.items() if number is not None}


def behind_a_neighbour(
    encode: Encode, neighbours: Mapping[str, int], texts: Sequence[str]
) -> list[list[int]]:
    """The ids that each text has where another one stands before it.

    A text that merges with every neighbour has the ids that it has by itself.
    """
    own = dict(zip(neighbours, encode(list(neighbours)), strict=True))
    return _beside(encode, own, texts, lambda character, text: character + text, _behind)


def before_a_neighbour(
    encode: Encode, neighbours: Mapping[str, int], texts: Sequence[str]
) -> list[list[int]]:
    """The ids that each text has where another one stands behind it.

    If the mark at the beginning is a token of its own there, it is among them, even those of an
    empty text: what stands behind is not at the beginning then.
    """
    own = {character: [number] for character, number in neighbours.items()}
    return _beside(encode, own, texts, lambda character, text: text + character, _in_front)


def _behind(row: list[int], own: list[int]) -> list[int] | None:
    """What stands behind a neighbour's own ids, None if they are not there."""
    return row[len(own) :] if row[: len(own)] == own else None


def _in_front(row: list[int], own: list[int]) -> list[int] | None:
    """What stands in front of a neighbour's only id, None if it is not there."""
    return row[:-1] if row[-1:] == own else None


def _beside(
    encode: Encode,
    own_ids: Mapping[str, list[int]],
    texts: Sequence[str],
    join: Callable[[str, str], str],
    rest: Callable[[list[int], list[int]], list[int] | None],
) -> list[list[int]]:
    """The ids of each text beside the first neighbour that it does not merge with."""
    found: dict[int, list[int]] = {}
    for character, own in own_ids.items():
        asked = [index for index in range(len(texts)) if index not in found]
        if not asked:
            break
        rows = encode([join(character, texts[index]) for index in asked])
        for index, row in zip(asked, rows, strict=True):
            if (ids := rest(row, own)) is not None:
                found[index] = ids
    others = iter(encode([text for index, text in enumerate(texts) if index not in found]))
    return [found[index] if index in found else next(others) for index in range(len(texts))]
