"""Options of the attacks: what is refused, and how those in use are named."""

import pytest

from robustjax.attacks.gcg import GCG
from robustjax.attacks.random_token import RandomToken
from robustjax.errors import UserError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, "momentum=1.0 must be at least 0 and less than 1"),
        ({"momentum": float("nan")}, "momentum=nan"),
        ({"num_replacements": 0}, "num_replacements=0"),
        ({"num_replacements": 11}, "num_replacements=11 is more than num_tokens=10"),
        ({"probe_size": 1}, "probe_size=1 has no rank correlation"),
        ({"probe_size": -1}, "probe_size=-1 must not be negative"),
        ({"probe_size": 121}, "are more than num_candidates=128"),
        ({"probe_size": 8, "bf16_scoring": True}, "exclude each other"),
        ({"probe_reduction": 0}, "probe_reduction=0"),
    ],
)
def test_options_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        GCG(**settings)


def test_variants_name_what_is_in_use():
    assert GCG().variant == ""
    assert GCG(probe_reduction=4, candidate_chunk=64, position=0.5).variant == ""
    everything = GCG(
        untargeted=True,
        random_start=True,
        stop_at_success=True,
        keep_best=True,
        num_replacements=2,
        momentum=0.5,
        bf16_scoring=True,
    )
    assert everything.variant == (
        "untargeted+random_start+stop_at_success+keep_best+replacements+momentum+bf16"
    )
    assert RandomToken(stop_at_success=True).variant == "stop_at_success"
