"""The pool of adversarial examples, and what a round of training draws from it.

Every attacked text enters the pool, in the order of its making, whether the attack succeeded or
not. Each round trains on some clean and some pool examples; recent ones, and ones with a high loss
when last trained on, are drawn more often (Howe et al. 2024, arXiv 2407.18213).

Two differences from the reference implementation. Loss ranks are true ranks: there the i-th example
got as its rank the index of the i-th smallest loss, which scrambled the preference. And a round
that wants more clean examples than exist takes all there are, where the reference fails.
"""

import dataclasses
import zlib

import numpy as np
from jaxtyping import Bool, Float, Int

from robustjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    """How a round's training set is put together; the defaults are the paper's.

    Attributes:
        max_examples: greatest number of examples in a round, clean and adversarial.
        max_adversarial_share: greatest share of adversarial examples in it.
        loss_rank_weight: from 0, prefer recent examples, to 1, prefer those with a high loss.
        decay: how strong the preference is; 0 draws uniformly. One rank more multiplies the weight
            of an example by exp(decay).
    """

    max_examples: int = 1000
    max_adversarial_share: float = 0.8
    loss_rank_weight: float = 0.5
    decay: float = 0.005

    def __post_init__(self):
        if self.max_examples < 1:
            raise UserError(f"pool.max_examples: {self.max_examples} is below 1; use at least 1")
        for field in ("max_adversarial_share", "loss_rank_weight"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"pool.{field}: {getattr(self, field)} is not a share; use 0 to 1")
        if not np.isfinite(self.decay):
            raise UserError(f"pool.decay: {self.decay} is not a finite number")


@dataclasses.dataclass(frozen=True)
class RoundSample:
    """The training set of a round: N examples, of which some are clean and the rest adversarial.

    Attributes:
        clean_indices: rows of the clean training set, none twice.
        adversarial_indices: places in the pool, none twice.
        order: a permutation of 0..N-1; training position i takes item `order[i]` of the clean
            examples followed by the adversarial ones.
        num_clean_missing: how many clean examples the round wanted beyond those that exist. Above 0
            the share of adversarial examples is above what the limits ask for.
    """

    clean_indices: Int[np.ndarray, " clean"]
    adversarial_indices: Int[np.ndarray, " adversarial"]
    order: Int[np.ndarray, " N"]
    num_clean_missing: int = 0

    @property
    def is_adversarial(self) -> Bool[np.ndarray, " N"]:
        """Whether each training position holds a pool example."""
        return self.order >= len(self.clean_indices)

    @property
    def indices(self) -> Int[np.ndarray, " N"]:
        """For each training position the clean row, or the place in the pool."""
        return np.concatenate([self.clean_indices, self.adversarial_indices])[self.order]


def round_rng(seed: int, round_index: int, purpose: str = "pool") -> np.random.Generator:
    """The generator of a round, the same after a restart.

    Args:
        seed: the training seed, >= 0.
        round_index: the round, >= 0.
        purpose: keeps the draws for different things independent.
    """
    return np.random.default_rng([seed, round_index, zlib.crc32(purpose.encode())])


def choose_to_attack(
    num_clean: int, num_examples: int, rng: np.random.Generator
) -> Int[np.ndarray, " chosen"]:
    """Draws which clean rows a round attacks: uniformly, none twice.

    Raises:
        UserError: more are wanted than there are.
    """
    if not 1 <= num_examples <= num_clean:
        raise UserError(
            f"num_examples_per_round: {num_examples} of {num_clean} clean training examples; "
            f"use 1 to {num_clean}"
        )
    return rng.permutation(num_clean)[:num_examples]


def sample_round(
    config: PoolConfig,
    num_clean: int,
    losses: Float[np.ndarray, " pool"],
    rng: np.random.Generator,
) -> RoundSample:
    """Draws the training set of a round.

    Args:
        config: the limits and the preferences.
        num_clean: number of rows of the clean training set.
        losses: loss of each pool example when last trained on, in the order of the pool, oldest
            first; infinity for one never trained on.
        rng: see `round_rng`.

    Raises:
        ValueError: a loss is NaN, or there is nothing to train on.
    """
    pool = len(losses)
    if num_clean < 0 or num_clean + pool < 1:
        raise ValueError(f"num_clean={num_clean} with {pool} pool examples: nothing to train on")
    wanted = min(num_clean + pool, config.max_examples)
    num_adversarial = min(int(wanted * config.max_adversarial_share), pool)
    wanted_clean = wanted - num_adversarial
    num_clean_taken = min(wanted_clean, num_clean)
    clean_indices = rng.permutation(num_clean)[:num_clean_taken]
    # Taking the largest of log weight + Gumbel noise is drawing one after the other, without
    # replacement and in proportion to the weights; and no weight can round to 0.
    noisy = log_weights(config, losses) + rng.gumbel(size=pool)
    adversarial_indices = np.argsort(-noisy, kind="stable")[:num_adversarial]
    return RoundSample(
        clean_indices=clean_indices,
        adversarial_indices=adversarial_indices,
        order=rng.permutation(num_clean_taken + num_adversarial),
        num_clean_missing=wanted_clean - num_clean_taken,
    )


def log_weights(
    config: PoolConfig, losses: Float[np.ndarray, " pool"]
) -> Float[np.ndarray, " pool"]:
    """Log of the (unnormalised) weight with which each pool example is drawn.

    The weight is exp(decay x rank), the rank being a mean of the rank by age (the oldest has 0) and
    the rank by loss (the lowest has 0), weighted by `loss_rank_weight`. Equal losses, infinite ones
    above all, are ranked by age.
    """
    if np.isnan(losses).any():
        raise ValueError(f"pool: the loss of example {int(np.isnan(losses).argmax())} is NaN")
    time_rank = np.arange(len(losses))
    loss_rank = np.argsort(np.argsort(losses, kind="stable"))
    share = config.loss_rank_weight
    return config.decay * ((1 - share) * time_rank + share * loss_rank)
