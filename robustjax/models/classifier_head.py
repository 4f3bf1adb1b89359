"""Classifier heads that are drawn afresh, on weights that had another head or none."""

import dataclasses

import jax
from jax.sharding import NamedSharding

from robustjax.models import transformer
from robustjax.models.victim import Victim, param_shardings


def fresh_head(shape: jax.ShapeDtypeStruct, sharding: NamedSharding, seed: int) -> jax.Array:
    """A classifier head ``[D, N]``, normal with standard deviation 0.02."""

    def draw() -> jax.Array:
        return (0.02 * jax.random.normal(jax.random.key(seed), shape.shape)).astype(shape.dtype)

    return jax.jit(draw, out_shardings=sharding)()


def as_classifier(victim: Victim, num_classes: int, seed: int) -> Victim:
    """A classifier with the victim's weights and, in place of its head, a fresh one.

    The other weights are the victim's own arrays: nothing is copied.

    Args:
        victim: usually a language model.
        num_classes: classes of the new head.
        seed: of the new head.
    """
    definition = dataclasses.replace(victim.definition, head="classifier", num_classes=num_classes)
    shape = transformer.abstract_params(definition)["head"]["kernel"]
    sharding = param_shardings(definition, victim.mesh, victim.rules)["head"]["kernel"]
    head = {"kernel": fresh_head(shape, sharding, seed)}
    return dataclasses.replace(victim, definition=definition, params=victim.params | {"head": head})
