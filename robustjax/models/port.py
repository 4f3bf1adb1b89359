"""What a port consists of: the parts in which one architecture differs from another.

Adding an architecture is a file that defines its config, its block and a `Port`, and a line in
`robustjax.models.architectures`. The layer loop, the cache, the heads, sharding and the exchange of
weights with Hugging Face are written once, against this.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from robustjax.models.layers import Trunk


@runtime_checkable
class ModelConfig(Protocol):
    """The shape of a model, as far as everybody needs to know it.

    Every config is a frozen dataclass, so that it can be a static argument of a compiled function.
    """

    @property
    def vocab(self) -> int:
        """Rows of the embedding table."""

    @property
    def width(self) -> int:
        """Model width ``D``."""

    @property
    def layers(self) -> int:
        """Number of blocks ``L``."""

    @property
    def heads(self) -> int:
        """Query heads ``H``."""

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values; divides ``heads``."""

    @property
    def head_width(self) -> int:
        """Width ``K`` of one head."""

    @property
    def hidden(self) -> int:
        """Width ``F`` of the feed-forward layer."""

    @property
    def context(self) -> int:
        """Longest sequence the model is meant for, in tokens."""


AxesTree = Mapping[str, Mapping[str, tuple[str, ...]]]


@dataclasses.dataclass(frozen=True)
class Names:
    """What Hugging Face calls the weights.

    Values are `(module, parameter)` of ours. A `kernel` is the transposed `weight`.

    Attributes:
        prefix: what all names but the head's start with in a model that has a head.
        block_prefix: what the names of block `N` go on with, `{}` standing for `N`.
        block: names of a block's weights below that.
        trunk: names of the embedding's and the final norm's weights.
        lm_head: name of the language-model head.
        ignored: endings of tensors that hold no weights: buffers that older versions saved.
    """

    prefix: str
    block_prefix: str
    block: Mapping[str, tuple[str, str]]
    trunk: Mapping[str, tuple[str, str]]
    lm_head: str
    ignored: tuple[str, ...]
    classifier_head: str = "score.weight"


@dataclasses.dataclass(frozen=True)
class Port:
    """One architecture.

    The tables list all weights that a model of this kind may have; those that a config goes without
    (a bias, a head of its own) are left out where the tables are used.

    Attributes:
        config_type: class of its configs.
        model_types: Hugging Face's `model_type`s that it covers.
        block: makes a block: `block(config, numerics, rngs=...)`.
        trunk: makes what stands around the blocks: `trunk(config, numerics, head=..., outputs=...,
            rngs=...)`.
        block_axes: logical axes of a block's weights (`runtime.mesh` maps them to the mesh).
        names: what Hugging Face calls the weights.
        config_from_hugging_face: config from the content of a `config.json`. Raises `UserError` for
            what the port cannot do.
        config_to_hugging_face: the content of a `config.json`, without the head's fields.
    """

    config_type: type
    model_types: tuple[str, ...]
    block: Callable[..., Any]
    trunk: Callable[..., Trunk]
    block_axes: AxesTree
    names: Names
    config_from_hugging_face: Callable[[Mapping[str, Any]], Any]
    config_to_hugging_face: Callable[[Any], dict[str, Any]]


TRUNK_AXES: AxesTree = {
    "embed": {"embedding": ("vocab", "embed")},
    "final_norm": {"scale": ("embed",), "bias": ("embed",)},
    "head": {"kernel": ("embed", "vocab")},
}
"""Logical axes of the weights around the blocks; a classifier's head has "classes" for "vocab"."""
