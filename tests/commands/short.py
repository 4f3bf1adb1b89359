"""Flags that make commands short, and of shapes that one program each suffices for."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
FINETUNE = f"--config={ROOT / 'configs' / 'finetune.py'}"
ATTACK = f"--config={ROOT / 'configs' / 'attack.py'}"
TASK = ("--config.task.num_train=48", "--config.task.num_validation=64")
TRAINING = (
    *TASK,
    "--config.finetune.num_train=0",
    "--config.finetune.checkpoint_every=2",
    "--config.finetune.train.epochs=1",
    "--config.finetune.train.microbatch_size=4",
    "--config.finetune.train.edges=(64,1024)",
    "--config.finetune.train.optimizer.warmup_steps=0",
    "--config.finetune.train.optimizer.learning_rate=1e-2",
)
GCG = (
    *TASK,
    "--config.num_examples=8",
    "--config.attack.num_iterations=2",
    "--config.attack.num_tokens=4",
    "--config.attack.num_candidates=16",
    "--config.attack.candidate_chunk=16",
    "--config.search.batch_size=4",
    "--config.search.edges=(64,1024)",
)
ADVTRAIN = f"--config={ROOT / 'configs' / 'advtrain.py'}"
EDGES = "(64,1024)"
SHORT = {"num_tokens": 4, "num_candidates": 16, "candidate_chunk": 16}
ROUNDS = (
    *TASK,
    "--config.advtrain.num_rounds=2",
    "--config.advtrain.pool.max_examples=16",
    "--config.advtrain.pool.max_adversarial_share=0.25",
    "--config.advtrain.train.epochs=1",
    f"--config.advtrain.train.edges={EDGES}",
    "--config.advtrain.search.batch_size=4",
    f"--config.advtrain.search.edges={EDGES}",
    "--config.evaluation.num_examples=4",
    "--config.evaluation.search.batch_size=4",
    f"--config.evaluation.search.edges={EDGES}",
    "--config.evaluation.attacks.gcg.num_iterations=2",
    *(f"--config.evaluation.attacks.gcg.{name}={value}" for name, value in SHORT.items()),
)
HARDENING = (
    *ROUNDS,
    "--config.advtrain.examples_per_round=4",
    "--config.advtrain.attacks.gcg.schedule.end=2",
    *(f"--config.advtrain.attacks.gcg.attack.{name}={value}" for name, value in SHORT.items()),
)
