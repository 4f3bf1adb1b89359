"""What processes tell each other arrives as it was sent."""

import dataclasses
import math

import ml_dtypes
import numpy as np
import pytest

from robustjax.runtime.messages import packed, unpacked


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, -3, 2**70, 1e-308, 0.1, math.inf, "", 'a "quoted"\n\u2028 \U0001f600 \ud800'),
        *([], (), {}, [1, (2, [3])], {1: "one", "1": {"deep": (None,)}}, {"tuple": 1, "array": []}),
    ],
)
def test_values_arrive_as_they_were(value):
    found = unpacked(packed(value))
    assert found == value and repr(found) == repr(value)


def test_nan_arrives():
    assert math.isnan(unpacked(packed([math.nan]))[0])


@pytest.mark.parametrize("dtype", ["<f4", "f8", "i4", "u4", "bool", "<U5"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_arrays_keep_every_bit_and_can_be_written(dtype, shape):
    value = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    found = unpacked(packed({"x": value}))["x"]
    assert (found.dtype, found.shape) == (value.dtype, value.shape)
    assert found.tobytes() == value.tobytes() and found.flags.writeable
    turned = unpacked(packed(value.T))
    np.testing.assert_array_equal(turned, value.T)


@dataclasses.dataclass
class _Unknown:
    """Nothing that can be sent."""


@pytest.mark.parametrize(
    "value", [_Unknown(), [1, {2}], np.array([None]), np.zeros(2, ml_dtypes.bfloat16)]
)
def test_what_cannot_be_sent_is_told_at_once(value):
    with pytest.raises(TypeError, match="cannot be sent to another process"):
        packed(value)
