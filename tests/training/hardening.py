"""Short adversarial trainings, and what is remembered of a run."""

import dataclasses

from robustjax.attacks.gcg import GCG
from robustjax.attacks.search import SearchConfig
from robustjax.training.adversarial import AdversarialConfig
from robustjax.training.loop import TrainConfig
from robustjax.training.optimizer import OptimizerConfig
from robustjax.training.pool import PoolConfig
from robustjax.training.rounds import TrainingAttack
from robustjax.training.schedule import AttackSchedule

ROUNDS, ATTACKED, SEED = 3, 4, 5
GCG_ATTACK = GCG(num_tokens=2, num_candidates=8, candidate_chunk=8, top_k=16)
CONFIG = AdversarialConfig(
    attacks={"gcg": TrainingAttack(GCG_ATTACK, AttackSchedule(start=1, end=3))},
    num_rounds=ROUNDS,
    examples_per_round=ATTACKED,
    # Half of a round's eight texts are adversarial: all of the first pool, a part of later ones.
    pool=PoolConfig(max_examples=8, max_adversarial_share=0.5),
    # One update a round, so that every loss seen is that of the weights before the round.
    train=TrainConfig(1, 8, 4, OptimizerConfig(learning_rate=1e-2), edges=(128,)),
    search=SearchConfig(batch_size=2, edges=(128,)),
)


def attacking(**schedule):
    return {"gcg": TrainingAttack(GCG_ATTACK, AttackSchedule(**schedule))}


# Two passes of three updates a round, each saved: every place in a round is one to go on from.
LONG = dataclasses.replace(
    CONFIG,
    attacks=attacking(start=2),
    num_rounds=2,
    pool=PoolConfig(max_examples=20, max_adversarial_share=0.2),
    train=dataclasses.replace(CONFIG.train, epochs=2),
    checkpoint_every=1,
)


@dataclasses.dataclass
class Run:
    """A run from beginning to end, watched: every round's training set and saved pool losses."""

    folder: object
    victim: object
    summary: dict
    data: list
    losses: list
