"""Tokenising many texts that share most of their words."""

import itertools
from collections.abc import Iterable, Sequence

from robustjax.data.cuts import pieces
from robustjax.data.tokens import Tokenizer


class PieceEncoder:
    """Tokenises each distinct piece of its texts once.

    The ids are those of ``tokenizer.encode``, whatever the tokenizer: one for which the rule of
    ``robustjax.data.cuts`` is not proved is given whole texts. Pieces are remembered as long as the
    encoder lives.
    """

    def __init__(self, tokenizer: Tokenizer):
        """Remembers nothing yet."""
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, as ``Tokenizer.encode`` does; do not change the lists."""
        if not self._tokenizer.cuts_before_spaces:
            self._learn(texts)
            return [self._known[text] for text in texts]
        cut = [pieces(text) for text in texts]
        self._learn(itertools.chain.from_iterable(cut))
        known = self._known.__getitem__
        return [list(itertools.chain.from_iterable(map(known, parts))) for parts in cut]

    def encode_inside(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text behind another, as ``Tokenizer.encode_inside`` does."""
        # Where the rule is proved, that is the same, and the pieces are shared.
        if self._tokenizer.cuts_before_spaces:
            return self.encode(texts)
        return self._tokenizer.encode_inside(texts)

    def _learn(self, parts: Iterable[str]) -> None:
        new = [part for part in dict.fromkeys(parts) if part not in self._known]
        self._known.update(zip(new, self._tokenizer.encode(new), strict=True))
