"""The strict setting every test runs in: four CPU devices, no network, no silent broadcasting."""

import gc
import importlib.util
import os
from pathlib import Path

# Before anything imports jax or transformers.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import jax
import pytest

from tests.compiling import QUICKLY
from tests.no_skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401

SENTENCES = (
    "The quick brown fox jumps over the lazy dog while it rains in the mountains.",
    "Please send the report before Friday; the meeting was moved to half past nine.",
    "Win a free prize now! Click the link below and enter your account number.",
    "A scaling law relates the loss of a model to its size and to the compute spent.",
    "Zürich, naïve café — «déjà vu» 北京 😀 1,234.56 € \t tabs and\r\nnew lines.",
)


# How long an example takes says nothing about it where cores are shared.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")


def pytest_configure(config: pytest.Config) -> None:
    if _is_fast(config):  # the slow proofs run what users run
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICKLY}".strip()
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # A twentieth of the time goes into writing down where each operation comes from.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    # Tracing makes many objects that stay; looking for garbage among them takes as long.
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    # Programs are shared by the workers and with the next run. Subprocesses that tests kill do not
    # use it: a killed writer could leave half a program behind.
    jax.config.update("jax_compilation_cache_dir", str(config.rootpath / ".pytest_cache" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The fast suite runs where torch is absent; the slow proofs need it and say so."""
    needs_torch = collection_path.name.startswith("test_torch_")
    if needs_torch and _is_fast(config) and importlib.util.find_spec("torch") is None:
        return True
    return None


# Files that take longest, of both suites.
LONG = ("test_kill.py", "test_advtrain_kill.py", "test_processes.py", "test_tpu_points.py")
LONG += ("test_step.py", "test_adversarial_resumed.py", "test_finetune.py", "test_adversarial.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files begin, or a worker would be left alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in LONG)


def _is_fast(config: pytest.Config) -> bool:
    return "not slow" in config.option.markexpr


@pytest.fixture
def key():
    """A PRNG key; split it for more than one draw."""
    return jax.random.key(0)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level tokenizer with 512 ids, trained on a few sentences and generated prompts."""
    # Here, not above: jaxtyping's import hook must come first.
    from robustjax.data.tasks import TaskConfig, load_task
    from robustjax.data.tokens import train_byte_bpe

    task = load_task(TaskConfig("word_length", num_train=200, num_validation=1))
    return train_byte_bpe([*SENTENCES, *(example.text for example in task.train)], vocab_size=512)
