"""robustjax: how attack and defence compute trade off as language models scale.

Names are imported when first used, so that records and reports can be read where jax is absent.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustjax.attacks.beam_search import BeamSearch as BeamSearch
    from robustjax.attacks.beast import BEAST as BEAST
    from robustjax.attacks.gcg import GCG as GCG
    from robustjax.attacks.random_token import RandomToken as RandomToken
    from robustjax.errors import UserError as UserError
    from robustjax.evaluation.api import run_attack as run_attack
    from robustjax.models.layers import Numerics as Numerics
    from robustjax.models.loading import load_victim as load_victim

# Products that jaxlib's CPU compiler fuses with other operations into kernels of YNNPACK read from
# nowhere for some shapes, and end the process (jaxlib 0.10.2; the gradient of GCG at a tail of 266
# tokens is one). Products by themselves are sound. Read when the backend starts, hence here.
_YNN = "--xla_cpu_experimental_ynn_fusion_type"
if _YNN not in (_flags := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{_flags} {_YNN}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT".strip()

_HOMES = {
    "BEAST": "robustjax.attacks.beast",
    "BeamSearch": "robustjax.attacks.beam_search",
    "GCG": "robustjax.attacks.gcg",
    "Numerics": "robustjax.models.layers",
    "RandomToken": "robustjax.attacks.random_token",
    "UserError": "robustjax.errors",
    "load_victim": "robustjax.models.loading",
    "run_attack": "robustjax.evaluation.api",
}

__all__ = sorted(_HOMES)  # pyright: ignore


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'robustjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
