"""Executed FLOPs, read from programs, against what XLA counts in the compiled ones.

python -m benchmarks.flops_gap [POINT ...]

A forward pass, a pass of tails over a cached prefix, and the gradient of a training step, with
layers unrolled and scanned. XLA counts additions, exponentials and the like as well, and the body
of a loop once however often it runs. Prints a line of JSON for each.
"""

import functools
import json
import sys
from typing import Any

import jax
import numpy as np

from robustjax.attacks import random_token
from robustjax.attacks.frame import Program, abstract_inputs
from robustjax.attacks.random_token import RandomToken
from robustjax.evaluation.flops import executed_flops
from robustjax.models import transformer
from robustjax.models.registry import scaling_point
from robustjax.models.transformer import Definition
from robustjax.planning.rates import gradient_program

POINTS = ("nano-27k", "pythia-14m")
ROWS, WIDTH = 8, 256


def main() -> None:
    for point in sys.argv[1:] or POINTS:
        for scanned in (False, True):
            definition = Definition(scaling_point(point).config, scanned=scanned)
            for name, program in programs(definition).items():
                counted = executed_flops(program.function, *program.arguments)
                compiled = jax.jit(program.function).lower(*program.arguments).compile()
                analysis: Any = compiled.cost_analysis()
                figures = {
                    "point": point,
                    "layers": "scanned" if scanned else "unrolled",
                    "program": name,
                    "executed": counted,
                    "xla": int(analysis["flops"]),
                    "xla_by_executed": round(analysis["flops"] / counted, 3),
                }
                print(json.dumps(figures), flush=True)


def programs(definition: Definition) -> dict[str, Program]:
    """The three, by name."""
    ids: Any = jax.ShapeDtypeStruct((ROWS, WIDTH), np.int32)
    mask: Any = jax.ShapeDtypeStruct((ROWS, WIDTH), np.bool_)
    forward = functools.partial(transformer.apply, definition)
    attack = RandomToken(iterations_per_pass=16)
    tails = random_token.programs(attack, abstract_inputs(definition, (WIDTH, 8, 0), ROWS))
    return {
        "forward": Program(forward, (transformer.abstract_params(definition), ids, mask)),
        "cached_tail": tails["score"],
        "gradient": gradient_program(definition, (1, ROWS), WIDTH),
    }


if __name__ == "__main__":
    main()
