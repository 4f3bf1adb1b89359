"""The word list behind the generated tasks: the most frequent English words wordfreq ships."""

import functools
import hashlib
import importlib.metadata
from typing import Any

from robustjax.errors import UserError

NUM_WORDS = 25_000
MIN_LENGTH, MAX_LENGTH = 2, 16
SHA256 = "17ec61cef08f47ad0597a4b36020152dad8600cf7a4ab648413bc7989d5bae7d"
"""Hash of the words joined by newlines. A task is only the same task on the same list."""

# Slurs and obscenities, left out because prompts are printed and published. First 8 hex digits of
# each word's sha256, so that the words themselves stand nowhere in this repository.
_EXCLUDED = frozenset(
    """
    0033728f 05e63c24 08a841e9 0c64f3ba 11cf8376 120f6e5b 158869a9 245c20d3 2f5f6ce5
    31506a84 341d5638 45fb7c3b 517ae3f7 522788b6 566f532d 594810ad 59cc3cb8 5a9d9dce
    63333e4b 6ac3c336 6dbe0f85 78a00d18 85fc17f7 867d7897 886d51e9 8c5c0439 8f5083e3
    937d56e4 986c9900 9915ba2d 9ae315a9 a76d588d ab26f696 acd9193a b2a7d488 b690cdbe
    bb61ef40 bd331fb1 c2c3b68b d75a838d d95b1fc7 dd32831e dd92623b eb9b0354 f59e28f8
    """.split()
)


@functools.cache
def load_words() -> tuple[str, ...]:
    """Returns `NUM_WORDS` lower-case ASCII words in alphabetical order.

    They are the most frequent ones of `MIN_LENGTH` to `MAX_LENGTH` letters. The list is read once
    a process.

    Raises:
        UserError: the installed wordfreq ships other words, so the tasks would not be the same.
    """
    import wordfreq  # here, because only the generated tasks need it

    chosen: list[str] = []
    for word in wordfreq.iter_wordlist("en", "large"):
        if MIN_LENGTH <= len(word) <= MAX_LENGTH and _is_plain(word):
            chosen.append(word)
            if len(chosen) == NUM_WORDS:
                break
    words = tuple(sorted(chosen))
    found = hash_words(words)
    if found != SHA256:
        raise UserError(
            f"wordfreq {importlib.metadata.version('wordfreq')} ships another word list "
            f"(sha256 {found[:12]}, expected {SHA256[:12]}): install wordfreq 3.1.1"
        )
    return words


def hash_words(words: tuple[str, ...]) -> str:
    """Returns the sha256 of the words joined by newlines."""
    return hashlib.sha256("\n".join(words).encode("utf-8")).hexdigest()


def describe() -> dict[str, Any]:
    """Returns the provenance of the list, for `Task.source`."""
    return {
        "words": "wordfreq",
        "words_version": importlib.metadata.version("wordfreq"),
        "words_sha256": SHA256,
    }


def _is_plain(word: str) -> bool:
    return word.isascii() and word.isalpha() and word.islower() and not _is_excluded(word)


def _is_excluded(word: str) -> bool:
    return hashlib.sha256(word.encode("ascii")).hexdigest()[:8] in _EXCLUDED
