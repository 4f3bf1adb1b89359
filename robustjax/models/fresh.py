"""Models that are trained from scratch: the nano ladder's tokenizer and weights."""

from collections.abc import Iterable

from jax.sharding import Mesh

from robustjax.data.tokens import Tokenizer, train_byte_bpe
from robustjax.models import registry
from robustjax.models import victim as victims
from robustjax.models.layers import Numerics
from robustjax.models.transformer import Definition, Head, Remat
from robustjax.models.victim import Victim
from robustjax.runtime.mesh import AxisRules


def ladder_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of all sizes of the nano ladder, trained on a task's training texts."""
    return train_byte_bpe(texts, registry.NANO_VOCAB)


def fresh_victim(
    point: str,
    tokenizer: Tokenizer,
    *,
    num_classes: int,
    seed: int,
    mesh: Mesh,
    rules: AxisRules,
    numerics: Numerics,
    remat: Remat | None = None,
    head: Head = "classifier",
) -> Victim:
    """A scaling point with freshly drawn weights.

    Args:
        point: its name.
        tokenizer: what it reads with.
        num_classes: classes of a classifier.
        seed: of the weights.
        mesh: the devices.
        rules: how named axes are split over the mesh.
        numerics: number formats.
        remat: what training computes again in the backward pass; None takes what suits the model.
        head: `"lm"` makes a language model.
    """
    facts = registry.scaling_point(point)
    definition = Definition(
        facts.config,
        head=head,
        num_classes=num_classes,
        numerics=numerics,
        **registry.layer_loop(facts.config, remat),
    )
    params = victims.init_params(definition, seed, mesh, rules)
    return Victim(point, facts.family, definition, params, tokenizer, mesh, rules)
