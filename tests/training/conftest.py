"""A classifier or language model of a few thousand weights, and a task for it."""

import jax
import numpy as np
import pytest


class Killed(BaseException):
    """Stands for SIGKILL inside one process: nothing catches it."""


@pytest.fixture(scope="session")
def make_victim(tiny_tokenizer):
    """make_victim(mesh sizes, scanned, ...): untrained weights, the same on every mesh."""
    from robustjax.models.gpt_neox import GPTNeoXConfig
    from robustjax.models.layers import Numerics
    from robustjax.models.transformer import Definition
    from robustjax.models.victim import Victim, place_params
    from robustjax.runtime.mesh import AxisRules, MeshConfig, make_mesh
    from tests.models.tiny import make_params

    def make(
        sizes=(1, 1, 1), scanned=False, layers=1, numerics=None, head="classifier", weights=1.0
    ):
        config = GPTNeoXConfig(
            vocab=512,
            width=16,
            layers=layers,
            heads=2,
            hidden=32,
            context=128,
            rotary_fraction=0.5,
        )
        definition = Definition(config, head=head, numerics=numerics or Numerics(), scanned=scanned)
        mesh, rules = make_mesh(MeshConfig(*sizes)), AxisRules()
        dtype = np.dtype(definition.numerics.param_dtype)
        params = jax.tree.map(
            lambda leaf: (weights * np.asarray(leaf)).astype(dtype), make_params(definition)
        )
        params = place_params(params, definition, mesh, rules)
        return Victim("tiny", "nano", definition, params, tiny_tokenizer, mesh, rules, batch_size=8)

    return make


@pytest.fixture(scope="session")
def small_task():
    from robustjax.data.tasks import TaskConfig, load_task

    return load_task(TaskConfig("word_length", num_train=20, num_validation=8))


@pytest.fixture
def killed_at(monkeypatch):
    """killed_at(owner, name, n): inside the block the n-th call of the method kills the run."""
    import contextlib

    @contextlib.contextmanager
    def block(owner, name, n):
        calls = 0
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == n:
                raise Killed
            return original(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, counted)
            with pytest.raises(Killed):
                yield

    return block


def same_bits(one, other):
    """Whether two trees of arrays are the same, bit for bit."""
    return jax.tree.all(
        jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), one, other)
    )


@pytest.fixture(scope="session")
def run(make_victim, small_task):
    """run(folder) -> hardened victim and summary."""
    from robustjax.training.adversarial import train_adversarially
    from tests.training import hardening

    def call(folder, config=hardening.CONFIG, victim=None, **options):
        folder.mkdir(exist_ok=True)
        victim = victim or make_victim()
        return train_adversarially(
            victim, small_task, config, seed=hardening.SEED, folder=folder, label="test", **options
        )

    return call
