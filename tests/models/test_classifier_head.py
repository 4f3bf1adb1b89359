"""A classifier made of a language model of ours: its weights, a fresh head, and it says so."""

import logging

import jax
import numpy as np
import pytest

from robustjax import load_victim
from robustjax.errors import UserError
from robustjax.models.convert import convert


@pytest.mark.parametrize("family", ["neox", "qwen2"], ids=["own head", "tied head"])
def test_it_is_the_classifier_that_the_hugging_face_folder_makes(
    family, make_folder, tmp_path, caplog
):
    folder = make_folder(family, head="lm")
    ours = convert(folder, tmp_path / "stage" / "model")
    expected = load_victim(folder, num_classes=3, seed=5)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        victim = load_victim(ours.parent, num_classes=3, seed=5)
    assert f"{ours} holds no classifier head: it is drawn afresh" in caplog.text
    assert victim.definition == expected.definition
    jax.tree.map(np.testing.assert_array_equal, victim.params, expected.params)
    assert victim.logits(["some text"]).shape == (1, 3)
    other = load_victim(ours, num_classes=3, seed=6)
    assert not np.array_equal(other.params["head"]["kernel"], victim.params["head"]["kernel"])


def test_strict_keeps_the_language_model(make_folder, tmp_path):
    ours = convert(make_folder(head="lm"), tmp_path / "ours")
    with pytest.raises(UserError, match="has the head 'lm'; give head='lm'"):
        load_victim(ours, strict=True)
    assert "head" in load_victim(ours, head="lm", strict=True).params
