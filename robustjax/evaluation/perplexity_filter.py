"""Perplexity filter: flags texts of which a language model finds a part too unlikely.

An evaluation-time defence: attacks do not know of it, and it changes no answer. Howe et al. 2024
(arXiv 2407.18213) report it; the windows are those of Jain et al. 2023 (arXiv 2309.00614).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustjax.data.prompts import Example
from robustjax.errors import UserError
from robustjax.evaluation.detection import (
    SCORES_FILE,
    Aggregate,
    TextScores,
    detection_metrics,
    window_score,
    write_scores,
)
from robustjax.evaluation.perplexity import token_losses
from robustjax.evaluation.records import AttackRecord
from robustjax.models.victim import Victim
from robustjax.runtime import distributed


@dataclasses.dataclass(frozen=True)
class PerplexityFilterConfig:
    """How texts are scored, and when they are flagged.

    Attributes:
        proportion: share of clean training texts that are flagged.
        window: tokens that are looked at together.
        aggregate: what counts of the windows of a text: the unlikeliest, or their mean.
        num_preparation_examples: training texts that the threshold is taken from, the first ones; 0
            takes all.
    """

    proportion: float = 0.01
    window: int = 8
    aggregate: Aggregate = "max"
    num_preparation_examples: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.proportion < 1:
            raise UserError(f"proportion={self.proportion} must lie between 0 and 1")
        if self.window < 1:
            raise UserError(f"window={self.window} must be at least 1")
        if self.num_preparation_examples < 0:
            raise UserError(
                f"num_preparation_examples={self.num_preparation_examples} must not be negative; "
                "0 takes all"
            )


@dataclasses.dataclass(frozen=True)
class PerplexityFilter:
    """A filter with its threshold.

    Attributes:
        config: how it scores.
        model: the language model that scores.
        threshold: texts that score higher are flagged.
        prepared_on: scores of the clean training texts that the threshold comes from.
    """

    config: PerplexityFilterConfig
    model: Victim
    threshold: float
    prepared_on: np.ndarray

    def apply(
        self, examples: Sequence[Example], records: Sequence[AttackRecord], folder: Path
    ) -> dict[str, Any]:
        """Scores what an attack left, writes the scores down and says what the filter detects.

        Args:
            examples: the clean texts, of all that have a record.
            records: of the attack.
            folder: gets ``perplexity_scores.jsonl``, one line an example.

        Returns:
            `detection_metrics`, the threshold, and how far the scores of clean texts reach.

        Raises:
            UserError: a text is empty or longer than the language model's context.
        """
        texts = {example.example_id: example.text for example in examples}
        ids = [record.example_id for record in records]
        attacked = [one for one in records if one.attacked_text is not None]
        clean = score_texts(self.model, [texts[i] for i in ids], self.config)
        after = score_texts(self.model, [str(one.attacked_text) for one in attacked], self.config)
        score_after = dict(zip([one.example_id for one in attacked], after.tolist(), strict=True))
        scores = {
            example_id: TextScores(score, score_after.get(example_id))
            for example_id, score in zip(ids, clean.tolist(), strict=True)
        }
        if distributed.is_primary():
            write_scores(folder / SCORES_FILE, scores)
        return {
            **dataclasses.asdict(self.config),
            "num_prepared_on": len(self.prepared_on),
            "threshold": self.threshold,
            "lowest_prepared": float(self.prepared_on.min()),
            "highest_prepared": float(self.prepared_on.max()),
        } | detection_metrics(records, scores, self.threshold)


def prepare_filter(
    model: Victim, texts: Sequence[str], config: PerplexityFilterConfig
) -> PerplexityFilter:
    """Takes the threshold from clean training texts: the exact quantile of their scores.

    Texts that the model cannot read whole are passed over.

    Raises:
        UserError: the model is no language model, or no text is left.
    """
    rows = model.tokenizer.encode(list(texts[: config.num_preparation_examples or None]))
    readable = [row for row in rows if 2 <= len(row) <= model.context]
    if not readable:
        raise UserError(
            f"perplexity_filter: none of {len(rows)} training texts has between 2 and "
            f"{model.context} tokens; give the task training texts"
        )
    scores = _score_rows(model, readable, config)
    return PerplexityFilter(
        config, model, float(np.quantile(scores, 1 - config.proportion)), scores
    )


def score_texts(model: Victim, texts: Sequence[str], config: PerplexityFilterConfig) -> np.ndarray:
    """``[M]`` scores of whole texts, see `window_score`.

    Raises:
        UserError: a text has fewer than two tokens or more than the context.
    """
    rows = model.tokenizer.encode(list(texts))
    for text, row in zip(texts, rows, strict=True):
        if not 2 <= len(row) <= model.context:
            raise UserError(
                f"perplexity_filter: a text has {len(row)} tokens, and {model.name} reads 2 to "
                f"{model.context}: {text[:40]!r}; take a model with a longer context"
            )
    return _score_rows(model, rows, config)


def _score_rows(
    model: Victim, rows: Sequence[Sequence[int]], config: PerplexityFilterConfig
) -> np.ndarray:
    losses = token_losses(model, rows)
    return np.array([window_score(one, config.window, config.aggregate) for one in losses])
