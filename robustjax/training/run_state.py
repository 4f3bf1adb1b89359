"""How far an adversarial training is, but for its weights: what a checkpoint holds beside them.

The place determines the order of the data and all randomness, which is keyed by seed and round.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass
class RunState:
    """All that changes from update to update, but for the weights.

    Attributes:
        round: the round that is trained on, or the last one that is done.
        epoch: pass over its training set; None if the round is done.
        step: updates of that pass that are done.
        updates: updates before that pass, or in all if the round is done.
        rounds: summaries of the rounds that are done.
        losses: of the pool's texts when last trained on; infinite for those that never were.
        seen: of the training set's rows in this pass; NaN for those to come.
        records: what files the pool's texts are in, by round and attack.
    """

    round: int = 0
    epoch: int | None = None
    step: int = 0
    updates: int = 0
    rounds: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    losses: Float[np.ndarray, " pool"] = dataclasses.field(default_factory=lambda: np.zeros(0))
    seen: Float[np.ndarray, " N"] | None = None
    records: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def done(self) -> int:
        """The last round that is done."""
        return self.round if self.epoch is None else self.round - 1

    @property
    def number(self) -> int:
        """Updates that are done: what names a checkpoint."""
        return self.updates + self.step

    def to_json(self) -> dict[str, Any]:
        """The metadata of a checkpoint: what JSON can hold."""
        values = dict(vars(self))
        values["losses"] = [None if np.isinf(x) else float(x) for x in self.losses]
        if self.seen is not None:
            values["seen"] = [None if np.isnan(x) else float(x) for x in self.seen]
        return values

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> "RunState":
        """What `to_json` gave."""

        def numbers(name: str, missing: float) -> np.ndarray:
            return np.array([missing if x is None else x for x in values[name]], float)

        seen = None if values["seen"] is None else numbers("seen", np.nan)
        return cls(**values | {"losses": numbers("losses", np.inf), "seen": seen})
