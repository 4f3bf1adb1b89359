"""What TPUs' compiler wants the process to be like, before jax is imported."""

import os

ENVIRONMENT = {
    # All that is run goes on running on the CPU.
    "JAX_PLATFORMS": "cpu",
    # Nobody asks which TPU this machine has: it need not have any.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # The compiler takes no TPU, so there may be several of them at a time.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def for_tpu_compiler() -> None:
    """Makes this process one that compiles for TPUs."""
    os.environ.update(ENVIRONMENT)


def is_for_tpu_compiler() -> bool:
    """Whether it is one."""
    return all(os.environ.get(name) == value for name, value in ENVIRONMENT.items())
