"""What a filter detects, by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustjax.evaluation.detection import TextScores, detection_metrics, window_score
from tests.evaluation.test_records import failed, make_record, wrong_before


def test_windows_are_cut_from_both_ends():
    losses = [1.0, 1.0, 4.0, 0.0, 0.0, 9.0, 2.0]
    # From the left (1 1 4) (0 0 9), the 2 left over; from the right (1 4 0) (0 9 2), the 1 left.
    left, right = (2.0, 3.0), (5 / 3, 11 / 3)
    assert window_score(losses, 3, "max") == pytest.approx(11 / 3)
    assert window_score(losses, 3, "mean") == pytest.approx((np.mean(left) + np.mean(right)) / 2)


def test_a_short_text_is_one_window():
    assert window_score([1.0, 2.0], 8, "max") == 1.5
    assert window_score([3.0], 8, "mean") == 3.0
    with pytest.raises(ValueError, match="one token"):
        window_score([], 8, "max")


@given(st.lists(st.floats(0, 50), min_size=1, max_size=40), st.integers(1, 12))
def test_a_score_lies_between_the_losses(losses, window):
    highest = window_score(losses, window, "max")
    average = window_score(losses, window, "mean")
    assert min(losses) - 1e-9 <= average <= highest + 1e-9 <= max(losses) + 2e-9


def test_detection_of_a_mixed_attack():
    """Threshold 3. Flagged and broken, missed and broken, flagged for nothing, unseen and held."""
    records = [
        make_record(0, (True,)),
        make_record(1, (True,)),
        make_record(2, (False,)),
        make_record(3, (False,)),
        wrong_before(4),
        failed(5),
    ]
    scores = {
        0: TextScores(1.0, 5.0),
        1: TextScores(3.0, 3.0),  # at the threshold is not above it
        2: TextScores(4.0, 6.0),
        3: TextScores(0.0, 1.0),
        4: TextScores(9.0, None),
        5: TextScores(1.0, None),
    }
    found = detection_metrics(records, scores, 3.0)
    assert (found["num_flagged_before"], found["num_flagged_after"]) == (2, 2)
    assert found["true_positive_rate"] == found["false_negative_rate"] == 1 / 2
    assert found["false_positive_rate"] == pytest.approx(2 / 6)
    assert found["true_negative_rate"] == pytest.approx(4 / 6)
    assert found["attack_success_rate_unflagged"] == 1 / 4
    assert found["robustness_rate"] == 3 / 4
    assert found["accuracy_unflagged"] == found["unflagged_but_wrong_rate"] == 1 / 2
    assert found["flagged_but_correct_rate"] == 1 / 2
    low, high = found["true_positive_rate_interval"]
    assert 0 < low < 1 / 2 < high < 1


def test_nothing_attacked_and_nothing_flagged_are_nan():
    found = detection_metrics([wrong_before(0)], {0: TextScores(1.0, None)}, 3.0)
    assert math.isnan(found["true_positive_rate"])
    assert found["false_positive_rate"] == 0
    assert math.isnan(found["flagged_but_correct_rate"])


def test_an_attacked_text_without_a_score_is_an_error():
    with pytest.raises(ValueError, match="example_id 0 was attacked"):
        detection_metrics([make_record(0)], {0: TextScores(1.0, None)}, 3.0)
