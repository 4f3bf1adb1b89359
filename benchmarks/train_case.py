"""One side of a training comparison: seconds of a step of one of them, in a process of its own.

python -m benchmarks.train_case ours|torch FOLDER STEPS

Trains a classifier in the folder, in float32 with Adafactor, on batches of 8 texts of 256 random
tokens, and prints one line of JSON. The first two steps are left out: they compile, or warm up.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks.memory import peak_resident_gb
from benchmarks.yardstick import jax_product, matmul_rate, torch_product

BATCH, WIDTH, CLASSES, RATE = 8, 256, 2, 1e-5
LEFT_OUT = 2


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_case")
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    count = given.steps + LEFT_OUT + 1
    rows = rng.integers(1, 50_000, (count * BATCH, WIDTH))
    labels = rng.integers(0, CLASSES, count * BATCH)
    train, product = SIDES[given.side]
    rate = matmul_rate(product())
    times, losses = train(given.folder, rows, labels)
    seconds = statistics.median(np.diff(times)[LEFT_OUT:])
    figures = {
        "seconds_a_step": round(seconds, 3),
        "tokens_a_second": round(BATCH * WIDTH / seconds),
        "first_loss": round(losses[0], 4),
        "peak_resident_gb": peak_resident_gb(),
        "matmul_gflops": round(rate / 1e9, 1),
    }
    print(json.dumps(figures))


def train_ours(folder: Path, rows: np.ndarray, labels: np.ndarray) -> tuple[list, list]:
    """When the loss of each step was there, and the losses."""
    from robustjax import load_victim
    from robustjax.training.loop import LabelledRows, TrainConfig, Trainer, start
    from robustjax.training.optimizer import OptimizerConfig

    victim = load_victim(folder, num_classes=CLASSES)
    optimizer = OptimizerConfig("adafactor", RATE)
    config = TrainConfig(1, BATCH, BATCH, optimizer, edges=(WIDTH,))
    names = [str(number) for number in range(len(rows))]
    data = LabelledRows(rows.tolist(), labels.tolist(), victim.tokenizer.pad_id, names)
    trainer = Trainer(victim, config, data, seed=0)
    step, state = start(victim, config)
    times, losses = [], []

    def log(seen):
        times.append(time.perf_counter())
        losses.append(seen.loss)

    trainer.run_epoch(step, state, 0, log, lambda index: RATE, lambda *place: None)
    return times, losses


def train_torch(folder: Path, rows: np.ndarray, labels: np.ndarray) -> tuple[list, list]:
    """The same of a plain loop over the Hugging Face model."""
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.optimization import Adafactor

    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=CLASSES, dtype=torch.float32
    )
    model.config.pad_token_id = 0
    model.train()
    optimizer = Adafactor(
        model.parameters(), lr=RATE, scale_parameter=False, relative_step=False, warmup_init=False
    )
    times, losses = [], []
    for start in range(0, len(rows), BATCH):
        ids = torch.tensor(rows[start : start + BATCH])
        optimizer.zero_grad()
        loss = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            labels=torch.tensor(labels[start : start + BATCH]),
        ).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        times.append(time.perf_counter())
    return times, losses


SIDES = {"ours": (train_ours, jax_product), "torch": (train_torch, torch_product)}

if __name__ == "__main__":
    main()
