"""Pretraining compute by the name of the scaling point, against the published figures."""

import pytest

from robustjax.evaluation.pretraining import PRETRAIN_FLOPS, pretrain_flops
from robustjax.models.registry import POINTS

PUBLISHED = {
    "pythia-14m": 1.37269e19,
    "pythia-31m": 3.16991e19,
    "pythia-70m": 8.03790e19,
    "pythia-160m": 2.22561e20,
    "pythia-410m": 6.36653e20,
    "pythia-1b": 1.63518e21,
    "pythia-1.4b": 2.36008e21,
    "pythia-2.8b": 4.76187e21,
    "pythia-6.9b": 1.19670e22,
    "pythia-12b": 2.08483e22,
    "qwen2.5-0.5b": 5.33555e22,
    "qwen2.5-1.5b": 9.72540e22,
    "qwen2.5-3b": 1.94414e23,
    "qwen2.5-7b": 4.79784e23,
    "qwen2.5-14b": 9.30512e23,
}


def test_the_table_is_the_published_one_corrected():
    assert PRETRAIN_FLOPS == pytest.approx(PUBLISHED, rel=5e-6)
    assert PRETRAIN_FLOPS.keys() <= POINTS.keys()


def test_the_released_figures_exchange_two_models():
    released = {point: pretrain_flops(point, "released") for point in PUBLISHED}
    assert released["qwen2.5-3b"] == pytest.approx(4.79784e23, rel=5e-6)
    assert released["qwen2.5-7b"] == pytest.approx(1.94414e23, rel=5e-6)
    changed = {point for point in PUBLISHED if released[point] != PRETRAIN_FLOPS[point]}
    assert changed == {"qwen2.5-3b", "qwen2.5-7b"}


def test_an_instruct_model_counts_as_its_base():
    assert pretrain_flops("qwen2.5-7b-instruct") == pretrain_flops("qwen2.5-7b")


@pytest.mark.parametrize("point", ["nano-27k", "qwen2.5-72b", "my-model"])
def test_nothing_is_made_up_for_models_of_which_nothing_is_published(point):
    assert pretrain_flops(point) is None
