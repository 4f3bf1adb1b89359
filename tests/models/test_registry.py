"""Every scaling point has exactly the parameters it is published with."""

import dataclasses
from pathlib import Path

import jax
import pytest

from robustjax.errors import UserError
from robustjax.evaluation.pretraining import CLASSIFIER_PARAMS
from robustjax.models import transformer
from robustjax.models.registry import POINTS, layer_loop, scaling_point
from robustjax.models.transformer import Definition
from tests.models.tiny import CONFIGS, define


@pytest.mark.parametrize("name", CLASSIFIER_PARAMS)
def test_published_counts(name):
    assert scaling_point(name).classifier_params == CLASSIFIER_PARAMS[name]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("head", ["classifier", "lm"])
def test_abstract_weights_are_those_of_init(family, scanned, head):
    definition = define(family, scanned=scanned, head=head)
    expected = jax.eval_shape(lambda: transformer.init(definition, 0))
    assert transformer.abstract_params(definition) == expected


@pytest.mark.parametrize("name", POINTS)
def test_definitions_have_the_counts_of_the_registry(name):
    point = POINTS[name]
    definition = Definition(point.config, **layer_loop(point.config))
    assert transformer.count_params(definition) == point.classifier_params


def test_counting_allocates_nothing():
    before = len(jax.live_arrays())
    shapes = transformer.abstract_params(Definition(scaling_point("pythia-12b").config))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    assert len(jax.live_arrays()) == before


def test_a_language_model_counts_its_vocabulary_head():
    definition = Definition(scaling_point("pythia-14m").config, head="lm")
    assert transformer.count_params(definition) == 14_067_712


def test_a_tied_head_is_not_counted_twice():
    config = scaling_point("qwen2.5-0.5b").config
    tied = Definition(config, head="lm")
    untied = Definition(dataclasses.replace(config, is_tied=False), head="lm")
    assert transformer.count_params(tied) == 494_032_768
    assert transformer.count_params(untied) == 494_032_768 + 151_936 * 896


def test_unknown_points_are_refused():
    with pytest.raises(UserError, match="pythia-13b.*known: .*pythia-12b"):
        scaling_point("pythia-13b")


def test_layers_are_run_as_suits_the_model():
    """Unrolled while they are few; what is computed again grows with the size."""
    loops = {name: tuple(layer_loop(point.config).values()) for name, point in POINTS.items()}
    assert {loops[name] for name in ("nano-830k", "pythia-14m", "pythia-160m")} == {(False, "none")}
    assert {loops[name] for name in ("pythia-410m", "pythia-1.4b", "qwen2.5-1.5b")} == {
        (True, "dots")
    }
    assert {loops[name] for name in ("pythia-2.8b", "pythia-12b", "qwen2.5-72b")} == {
        (True, "blocks")
    }


def test_the_readme_tells_what_the_registry_knows():
    """Names, weights, sizes; the measured errors stand beside them."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    section = readme.split("\n## Scaling points\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith(("| pythia", "| qwen"))]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    points = [point for point in POINTS.values() if point.family in ("pythia", "qwen2.5")]
    assert len(rows) == len(points) == 17

    def size(text):
        number, unit = text.split()
        return float(number) * {"MB": 1e6, "GB": 1e9}[unit]

    for row, point in zip(rows, points, strict=True):
        name, weights, wide, narrow, compared, scores, gradients = row
        count, layers = point.classifier_params, point.config.layers
        assert (name, weights) == (point.name, f"{count:,}")
        assert size(wide) == pytest.approx(4 * count, rel=0.005)
        assert size(narrow) == pytest.approx(2 * count, rel=0.005)
        assert compared in (f"{layers} of {layers}", f"2 of {layers}")
        assert 0 < float(scores) < 1e-4 and 0 < float(gradients) < 1e-4
