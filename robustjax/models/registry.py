"""Scaling points: the architecture facts of every model of the family, and nothing else.

Shapes: Biderman et al. 2023 (arXiv 2304.01373) for Pythia, Qwen Team 2024 (arXiv 2412.15115) for
Qwen2.5, and the published configurations. Parameter
counts with a two-class head: Howe et al. 2024 (arXiv 2407.18213). How a point is run (batch,
learning rate, mesh) stands in ``configs/points.py``.
"""

import dataclasses
from typing import Any

from robustjax.errors import UserError
from robustjax.models.gpt_neox import GPTNeoXConfig
from robustjax.models.port import ModelConfig
from robustjax.models.qwen2 import Qwen2Config
from robustjax.models.transformer import Definition, Remat, count_params


@dataclasses.dataclass(frozen=True)
class ScalingPoint:
    """One model of a family.

    Attributes:
        name: how configs and commands call it.
        family: models that share a tokenizer and a training recipe.
        config: the shape.
        classifier_params: weights with a two-class head.
        hub_name: where the published weights are; empty when the point is trained from scratch.
    """

    name: str
    family: str
    config: ModelConfig
    classifier_params: int
    hub_name: str = ""


def layer_loop(config: ModelConfig, remat: Remat | None = None) -> dict[str, Any]:
    """How a model's layers are run: the fields ``scanned`` and ``remat`` of its `Definition`.

    More than a dozen layers compile slowly unrolled. Such models are also large enough to be short
    of memory in training; from two billion weights on, short of it in earnest.

    Args:
        config: the shape.
        remat: what training computes again, where it should not be what suits the shape.
    """
    if config.layers <= 12:
        return {"scanned": False, "remat": remat or "none"}
    is_large = count_params(Definition(config)) >= 2_000_000_000
    return {"scanned": True, "remat": remat or ("blocks" if is_large else "dots")}


def _pythia(
    size: str, layers: int, width: int, heads: int, classifier_params: int, vocab: int = 50_304
) -> ScalingPoint:
    config = GPTNeoXConfig(vocab=vocab, width=width, layers=layers, heads=heads, hidden=4 * width)
    name = f"pythia-{size}"
    return ScalingPoint(name, "pythia", config, classifier_params, f"EleutherAI/{name}")


def _qwen(
    size: str,
    layers: int,
    width: int,
    heads: int,
    key_value_heads: int,
    hidden: int,
    classifier_params: int,
    *,
    is_tied: bool = False,
    norm_epsilon: float = 1e-6,
) -> tuple[ScalingPoint, ScalingPoint]:
    """A base model and the instruct model of the same shape."""
    config = Qwen2Config(
        vocab=151_936 if width <= 2048 else 152_064,
        width=width,
        layers=layers,
        heads=heads,
        key_value_heads=key_value_heads,
        head_width=width // heads,
        hidden=hidden,
        is_tied=is_tied,
        norm_epsilon=norm_epsilon,
    )
    instruct = dataclasses.replace(config, norm_epsilon=1e-6)
    hub_name = f"Qwen/Qwen2.5-{size.upper()}"
    return (
        ScalingPoint(f"qwen2.5-{size}", "qwen2.5", config, classifier_params, hub_name),
        ScalingPoint(
            f"qwen2.5-{size}-instruct",
            "qwen2.5-chat",
            instruct,
            classifier_params,
            f"{hub_name}-Instruct",
        ),
    )


def _nano(size: str, layers: int, width: int, heads: int, classifier_params: int) -> ScalingPoint:
    # Half of each narrow head is rotated (a quarter in Pythia): fewer than four rotary dimensions
    # leave a single frequency. Weights start at 1/sqrt(width) because these train from scratch.
    config = GPTNeoXConfig(
        vocab=NANO_VOCAB,
        width=width,
        layers=layers,
        heads=heads,
        hidden=4 * width,
        context=1024,
        rotary_fraction=0.5,
        init_scale=width**-0.5,
    )
    return ScalingPoint(f"nano-{size}", "nano", config, classifier_params)


NANO_VOCAB = 512
"""Vocabulary of the nano ladder's tokenizer: 256 bytes, one special token, 255 merges."""

_POINTS = (
    _nano("27k", 2, 24, 2, 26_832),
    _nano("80k", 2, 48, 4, 81_312),
    _nano("230k", 3, 72, 3, 226_584),
    _nano("510k", 3, 112, 4, 513_744),
    _nano("830k", 3, 144, 4, 826_416),
    _pythia("14m", 6, 128, 4, 7_629_056),
    _pythia("31m", 6, 256, 8, 17_617_408),
    _pythia("70m", 6, 512, 8, 44_672_000),
    _pythia("160m", 12, 768, 12, 123_691_008),
    _pythia("410m", 24, 1024, 16, 353_824_768),
    _pythia("1b", 16, 2048, 8, 908_763_136),
    _pythia("1.4b", 24, 2048, 16, 1_311_629_312),
    _pythia("2.8b", 32, 2560, 32, 2_646_435_840),
    _pythia("6.9b", 32, 4096, 32, 6_650_740_736, vocab=50_432),
    _pythia("12b", 36, 5120, 40, 11_586_560_000, vocab=50_688),
    *_qwen("0.5b", 24, 896, 14, 2, 4864, 494_034_560, is_tied=True),
    *_qwen("1.5b", 28, 1536, 12, 2, 8960, 1_543_717_376, is_tied=True),
    *_qwen("3b", 36, 2048, 16, 2, 11_008, 3_085_942_784, is_tied=True),
    *_qwen("7b", 28, 3584, 28, 4, 18_944, 7_070_626_304),
    *_qwen("14b", 48, 5120, 40, 8, 13_824, 13_991_476_224, norm_epsilon=1e-5),
    *_qwen("32b", 64, 5120, 40, 8, 27_648, 31_985_318_912, norm_epsilon=1e-5),
    *_qwen("72b", 80, 8192, 64, 8, 29_568, 71_460_511_744, norm_epsilon=1e-5),
)

POINTS = {point.name: point for point in _POINTS}
"""Every scaling point by name, smallest first within a family."""


def scaling_point(name: str) -> ScalingPoint:
    """Looks up a scaling point.

    Raises:
        UserError: if there is none of that name; the message lists the names.
    """
    if name not in POINTS:
        raise UserError(f"scaling point {name!r} is unknown; known: {', '.join(POINTS)}")
    return POINTS[name]
