"""What the pretraining of published models cost, the axis that attack and defence are set against.

`6 N D` FLOPs: N weights of the language model as Howe et al. 2024 (arXiv 2407.18213) count them (of
Pythia without the unembedding, of Qwen2.5 with it where it is not tied), D tokens. Pythia: 143,000
steps of 2,097,152 tokens (Biderman et al. 2023, arXiv 2304.01373). Qwen2.5: 18e12 tokens (Qwen Team
2024, arXiv 2412.15115) are taken for the smallest, and 10.5e12, an assumption of Howe et al., for
the others. This module never imports jax.
"""

from collections.abc import Mapping
from typing import Literal

Source = Literal["corrected", "released"]
"""`released` has Qwen2.5's 3b and 7b exchanged, as the released analysis of Howe et al. does."""

_PYTHIA_TOKENS = 143_000 * 2_097_152
_LM_PARAMS_AND_TOKENS = {
    "pythia-14m": (7_628_800, _PYTHIA_TOKENS),
    "pythia-31m": (17_616_896, _PYTHIA_TOKENS),
    "pythia-70m": (44_670_976, _PYTHIA_TOKENS),
    "pythia-160m": (123_689_472, _PYTHIA_TOKENS),
    "pythia-410m": (353_822_720, _PYTHIA_TOKENS),
    "pythia-1b": (908_759_040, _PYTHIA_TOKENS),
    "pythia-1.4b": (1_311_625_216, _PYTHIA_TOKENS),
    "pythia-2.8b": (2_646_430_720, _PYTHIA_TOKENS),
    "pythia-6.9b": (6_650_732_544, _PYTHIA_TOKENS),
    "pythia-12b": (11_586_549_760, _PYTHIA_TOKENS),
    "qwen2.5-0.5b": (494_032_768, 18 * 10**12),
    "qwen2.5-1.5b": (1_543_714_304, 105 * 10**11),
    "qwen2.5-3b": (3_085_938_688, 105 * 10**11),
    "qwen2.5-7b": (7_615_616_512, 105 * 10**11),
    "qwen2.5-14b": (14_770_033_664, 105 * 10**11),
}

CLASSIFIER_PARAMS: Mapping[str, int] = {
    "pythia-14m": 7_629_056,
    "pythia-31m": 17_617_408,
    "pythia-70m": 44_672_000,
    "pythia-160m": 123_691_008,
    "pythia-410m": 353_824_768,
    "pythia-1b": 908_763_136,
    "pythia-1.4b": 1_311_629_312,
    "pythia-2.8b": 2_646_435_840,
    "pythia-6.9b": 6_650_740_736,
    "pythia-12b": 11_586_560_000,
    "qwen2.5-0.5b": 494_034_560,
    "qwen2.5-1.5b": 1_543_717_376,
    "qwen2.5-3b": 3_085_942_784,
    "qwen2.5-7b": 7_070_626_304,
    "qwen2.5-14b": 13_991_476_224,
}
"""Weights with a head of two classes in place of the unembedding (Howe et al. 2024)."""

POINT_OF_NUM_PARAMS: Mapping[int, str] = {
    **{count: point for point, count in CLASSIFIER_PARAMS.items()},
    **{count: point for point, (count, _) in _LM_PARAMS_AND_TOKENS.items()},
}
"""Scaling point by its weights, those of the classifier or of the language model.

Results are looked up by this count, never by their rank among others: a file may lack sizes.
"""

PRETRAIN_FLOPS: Mapping[str, int] = {
    point: 6 * params * tokens for point, (params, tokens) in _LM_PARAMS_AND_TOKENS.items()
}
"""By scaling point."""

_EXCHANGED = {"qwen2.5-3b": "qwen2.5-7b", "qwen2.5-7b": "qwen2.5-3b"}


def pretrain_flops(point: str, source: Source = "corrected") -> int | None:
    """FLOPs of a scaling point's pretraining, or None if nothing is published about it.

    Args:
        point: its name; an instruct model counts as its base.
        source: which figures, see `Source`.
    """
    base = point.removesuffix("-instruct")
    if source == "released":
        base = _EXCHANGED.get(base, base)
    return PRETRAIN_FLOPS.get(base)
