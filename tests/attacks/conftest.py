"""Victims that the attack tests share, compiled programs included."""

import pytest

# robustjax is imported inside the fixtures: jaxtyping's import hook must come first.


@pytest.fixture(scope="session")
def victim(tiny_tokenizer):
    from tests.attacks.tiny import make_victim

    return make_victim(tiny_tokenizer)


@pytest.fixture(scope="session")
def examples(victim):
    """Eight examples that the victim answers correctly."""
    from tests.attacks.tiny import make_examples

    return make_examples(victim)


@pytest.fixture(scope="package", autouse=True)
def quick_compilation():
    """Compiling is what takes these tests their time; bits are compared in tests/evaluation."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
