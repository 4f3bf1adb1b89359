"""The flag that keeps jaxlib's CPU compiler from kernels that end the process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GRADIENT = """
import jax
import jax.numpy as jnp
import numpy as np
from robustjax.attacks import gcg
from robustjax.attacks.frame import abstract_inputs
from robustjax.models.registry import scaling_point
from robustjax.models.transformer import Definition

inputs = abstract_inputs(Definition(scaling_point("nano-230k").config), (64, 256, 0), 16)
program = gcg.programs(gcg.GCG(candidate_chunk=16), inputs)["propose"]
rng = np.random.default_rng(0)


def make(leaf):
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype)
    if leaf.dtype == jnp.bool_:
        return jnp.full(leaf.shape, len(leaf.shape) > 1)
    return jnp.asarray(rng.integers(0, 2, leaf.shape), leaf.dtype)


arguments = jax.tree.map(make, program.arguments)
for _ in range(2):
    jax.block_until_ready(jax.jit(program.function)(*arguments))
print("alive")
"""


@pytest.mark.slow
def test_a_gradient_of_a_shape_that_ended_the_process():
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
    environment.pop("XLA_FLAGS", None)  # what robustjax itself sets is asked for
    done = subprocess.run(
        [sys.executable, "-c", GRADIENT], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-2000:]


def test_flags_of_the_user_s_own_are_kept():
    program = "import os, robustjax; print(os.environ['XLA_FLAGS'])"

    def flags(given):
        environment = {**os.environ, "XLA_FLAGS": given}
        command = [sys.executable, "-c", program]
        return subprocess.check_output(command, cwd=ROOT, env=environment, text=True).strip()

    ours = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
    assert flags("") == ours
    assert flags("--xla_dump_to=/tmp/x") == f"--xla_dump_to=/tmp/x {ours}"
    other = "--xla_cpu_experimental_ynn_fusion_type="
    assert flags(other) == other
