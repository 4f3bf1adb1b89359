"""Places where a text can be cut so that its tokens are those of the two halves.

**The rule.** For the tokenizers that ``cuts_before_spaces`` knows, a text may be cut between a
printable ASCII character and the space after it: ``tokens(x + y) == tokens(x) + tokens(y)``,
whatever else ``x`` and ``y`` hold. Step by step through such a tokenizer:

1. *Added tokens* are searched in the text first. One that spans the cut would hold the two
   characters itself: a tokenizer with such a token is refused, and so is one whose tokens take in
   spaces around them or look at their neighbours (``lstrip``, ``rstrip``, ``single_word``). A run
   of spaces is no such token: no cut lies inside a run.
2. *NFC* composes no mark with a space, and nothing with a space before or after it: the halves are
   normalised as the whole is, and the two characters at the cut remain.
3. *The pre-tokenizer's pattern* is matched from left to right, each match beginning where the last
   one ended. In both patterns known here a space can only be the first character of a match of
   anything but white space, so some match ends exactly at the cut. It does so at the end of ``x``
   alone as well: each alternative treats the space there as it treats the text's end, and the
   one look-ahead stands after white space, which the cut does not. Nothing looks back.
4. *BPE* sees one match at a time.

So what stands before the last cut before an attack slot, and after the first cut after it, cannot
change with the slot (the filter of Howe et al. 2024, arXiv 2407.18213, need not look there), and
texts that share their words can be tokenised word by word.
"""

import re
from typing import Any

# The literal first: the engine then jumps from space to space.
_CUT = re.compile(r" (?<=[!-~] )")

_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = (_GPT2_PATTERN, _QWEN2_PATTERN)


def pieces(text: str) -> list[str]:
    """Cuts a text before each space that a printable ASCII character precedes.

    Returns:
        Texts that join to ``text``; each but the first begins with a space.
    """
    first, *others = _CUT.split(text)
    return [first, *[" " + other for other in others]]


def cuts_before_spaces(description: dict[str, Any]) -> bool:
    """Whether the rule above is proved for a tokenizer.

    Args:
        description: the content of its ``tokenizer.json``.

    Returns:
        True for byte-level BPE as GPT-2, GPT-NeoX and Pythia (a run of spaces may be an added
        token) and Qwen2 have it; False for anything not known.
    """
    model = description["model"]
    normalizer = description["normalizer"]
    return (
        model["type"] == "BPE"
        and not model.get("dropout")
        and (normalizer is None or normalizer == {"type": "NFC"})
        and _splits_by_known_pattern(description["pre_tokenizer"])
        and not any(_may_reach_over_a_cut(token) for token in description["added_tokens"])
    )


def _splits_by_known_pattern(pre_tokenizer: dict[str, Any] | None) -> bool:
    """ByteLevel with its own pattern, or one of the patterns followed by ByteLevel without."""
    if pre_tokenizer is None:
        return False
    *splits, last = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) or [{"type": "nothing"}]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    if last.get("use_regex", True):
        return not splits
    return len(splits) == 1 and any(
        splits[0]
        == {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
        for pattern in _PATTERNS
    )


def _may_reach_over_a_cut(added_token: dict[str, Any]) -> bool:
    looks_around = any(added_token[flag] for flag in ("lstrip", "rstrip", "single_word"))
    return looks_around or len(pieces(added_token["content"])) > 1
