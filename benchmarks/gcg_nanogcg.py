"""NanoGCG's side of a comparison, in an environment of its own.

python -m benchmarks.gcg_nanogcg FOLDER STEPS

Runs its GCG, prefix cache and filter on, on the case in the folder, and prints one line of JSON.
An iteration is timed from one gradient to the next, the first left out.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import nanogcg
import torch
import transformers
from nanogcg.gcg import GCG

from benchmarks.memory import peak_resident_gb

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
case = json.loads((folder / "case.json").read_text())
model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
begins, survivors = [], []
gradient, losses = GCG.compute_token_gradient, GCG._compute_candidates_loss_original


def timed_gradient(self, *arguments):
    begins.append(time.perf_counter())
    return gradient(self, *arguments)


def counted_losses(self, batch_size, embeddings):
    survivors.append(len(embeddings))
    return losses(self, batch_size, embeddings)


GCG.compute_token_gradient, GCG._compute_candidates_loss_original = timed_gradient, counted_losses
nanogcg.run(
    model,
    tokenizer,
    case["before"] + "{optim_str}" + case["after"],
    case["target"],
    nanogcg.GCGConfig(
        num_steps=steps + 2,
        optim_str_init=case["slot"],
        search_width=128,
        topk=256,
        seed=0,
        use_prefix_cache=True,
        filter_ids=True,
        verbosity="ERROR",
    ),
)
seconds = statistics.median(b - a for a, b in zip(begins[1:], begins[2:], strict=False))
print(
    json.dumps(
        {
            "milliseconds": round(1000 * seconds, 1),
            "peak_resident_gb": round(peak_resident_gb(), 2),
            "survivors": round(statistics.mean(survivors[1:]), 1),
        }
    )
)
