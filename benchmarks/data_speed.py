"""Tokenising and batching mail-sized texts, against a forward pass of pythia-14m's shape.

python -m benchmarks.data_speed [--examples=20000] [--texts=FILE]

Texts are those of a JSONL file with a field `text`, again and again until there are enough, or
words of the generated tasks' list in numbers drawn like the lengths of mails (log-normal, median
170 words). Both sides work on the same padded batches, with a byte-level tokenizer of 8,000 ids
that was trained on some of the texts; what does not fit into 1024 tokens is left out on both.
Prints a line of JSON.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

from robustjax.data.batching import length_bucketed_batches
from robustjax.data.pipeline import padded_batches, read_ahead
from robustjax.data.tasks.rows import read_objects
from robustjax.data.tasks.words import load_words
from robustjax.data.tokens import train_byte_bpe
from robustjax.models.fresh import fresh_victim
from robustjax.models.layers import Numerics
from robustjax.models.victim import apply
from robustjax.runtime.mesh import AxisRules, MeshConfig, make_mesh

POINT, VOCAB, LEARNT_FROM = "pythia-14m", 8_000, 2_000
EDGES, BATCH, LONGEST = (128, 256, 384, 512, 640, 768, 896, 1024), 16, 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_speed")
    parser.add_argument("--examples", default=20_000, type=int)
    parser.add_argument("--texts", type=Path)
    given = parser.parse_args()
    texts = _read(given.texts) if given.texts else _made_up(given.examples)
    texts = list(itertools.islice(itertools.cycle(texts), given.examples))
    tokenizer = train_byte_bpe(texts[:LEARNT_FROM], VOCAB)

    started = time.perf_counter()
    rows = [row for row in tokenizer.encode(texts) if 1 <= len(row) <= LONGEST]
    tokenising = time.perf_counter() - started
    batches = length_bucketed_batches([len(row) for row in rows], EDGES, BATCH, seed=0, epoch=0)
    padded = padded_batches(rows, tokenizer.pad_id, batches)
    num_batches = sum(1 for _ in read_ahead(padded))
    batching = time.perf_counter() - started - tokenising

    victim = fresh_victim(
        POINT,
        tokenizer,
        num_classes=2,
        seed=0,
        mesh=make_mesh(MeshConfig()),
        rules=AxisRules(),
        numerics=Numerics(),
    )
    for width in sorted({batch.width for batch in batches}):  # compiled before the clock starts
        ids = np.zeros((BATCH, width), np.int32)
        jax.block_until_ready(apply(victim.definition, victim.params, ids, ids == 0))
    started = time.perf_counter()
    for number, batch in enumerate(read_ahead(padded), start=1):
        placed = victim.put_examples((batch.ids, batch.mask))
        jax.block_until_ready(apply(victim.definition, victim.params, *placed))
        if number % 100 == 0:
            left = (time.perf_counter() - started) * (num_batches / number - 1)
            print(f"{number} of {num_batches} batches, {left:.0f} s left", file=sys.stderr)
    forward = time.perf_counter() - started
    figures = {
        "examples": len(rows),
        "tokens": sum(map(len, rows)),
        "padded_tokens": sum(batch.width * BATCH for batch in batches),
        "tokenising_seconds": round(tokenising, 2),
        "batching_seconds": round(batching, 2),
        "forward_seconds": round(forward, 2),
        "share_of_forward": round((tokenising + batching) / forward, 4),
    }
    print(json.dumps({"point": POINT} | figures))


def _read(path: Path) -> list[str]:
    return [fields["text"] for _, fields in read_objects(path)]


def _made_up(count: int) -> list[str]:
    rng, words = np.random.default_rng(0), load_words()
    lengths = np.clip(rng.lognormal(np.log(170), 0.9, count), 5, 900).astype(int)
    return [" ".join(words[i] for i in rng.integers(len(words), size=n)) for n in lengths]


if __name__ == "__main__":
    main()
