"""The transfer matrix: which cells a product names, and which rounds are looked at."""

import pytest

from robustjax.attacks.gcg import GCG
from robustjax.attacks.random_token import RandomToken
from robustjax.errors import UserError
from robustjax.evaluation.transfer import TransferConfig, cells, spaced_rounds

ATTACKS = {"gcg": GCG(num_iterations=10), "rt": RandomToken(num_iterations=64)}


def named(products, trained_on="gcg", num_rounds=12, point="nano-27k", seed=0):
    found = cells(
        *(products, ATTACKS, 50),
        point=point,
        seed=seed,
        trained_on=trained_on,
        num_rounds=num_rounds,
    )
    return [(c.round, c.label, c.attack.num_iterations, c.num_examples) for c in found]


@pytest.mark.parametrize(
    ("num_rounds", "expected"),
    [
        (60, [1, 2, 3, 4, 6, 9, 15, 24, 38, 60]),
        (59, [1, 2, 3, 4, 6, 9, 15, 23, 37, 59]),
        (21, [1, 2, 3, 4, 5, 6, 7, 10, 14, 21]),
        (250, [1, 2, 3, 6, 11, 21, 39, 73, 135, 250]),
        (163, [1, 2, 3, 5, 9, 16, 29, 52, 92, 163]),
        (22, [1, 2, 3, 4, 5, 6, 7, 11, 15, 22]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (5, [1, 2, 3, 4, 5]),
        (1, [1]),
        (512, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]),
    ],
)
def test_the_rounds_of_the_published_evaluations(num_rounds, expected):
    assert list(spaced_rounds(num_rounds)) == expected


def test_by_default_everything_meets_everything_before_and_after():
    products = {"all": TransferConfig()}
    assert named(products) == [(12, "gcg", 10, 50), (12, "rt", 64, 50)]
    assert named(products, "none", 0) == [(0, "gcg", 10, 50), (0, "rt", 64, 50)]


def test_a_product_is_every_combination_of_its_fields():
    product = TransferConfig(("gcg",), positions=(1.0, 0.9, 0.0), rounds="spaced", num_examples=7)
    found = named({"p": product}, num_rounds=3)
    labels = ["gcg", "gcg@0.9", "gcg@0"]
    assert found == [(number, label, 10, 7) for number in (1, 2, 3) for label in labels]


def test_products_leave_out_victims_they_do_not_name():
    product = TransferConfig(trained_on=("rt",), points=("nano-27k",), seeds=(1,))
    assert named({"p": product}, "rt", seed=1)
    for changes in ({"trained_on": "gcg"}, {"point": "nano-80k"}, {"seed": 0}):
        assert not named({"p": product}, **{"trained_on": "rt", "seed": 1} | changes)


def test_a_cell_that_two_products_name_is_run_once_with_the_most():
    products = {
        "way": TransferConfig(("gcg",), rounds="all", num_examples=9, iterations=128),
        "end": TransferConfig(("gcg",), num_examples=20),
    }
    assert named(products, num_rounds=3) == [
        (1, "gcg", 128, 9),
        (2, "gcg", 128, 9),
        (3, "gcg", 128, 20),
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": "first"}, "rounds='first' is unknown; use last, all, spaced"),
        ({"iterations": -1}, "iterations=-1 must not be negative"),
        ({"num_examples": -2}, "num_examples=-2 must not be negative"),
        ({"positions": (1.5,)}, "position=1.5 must lie between"),
    ],
)
def test_what_a_product_refuses(fields, message):
    with pytest.raises(UserError, match=message):
        TransferConfig(**fields)
