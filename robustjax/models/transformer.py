"""One forward pass for every port: pure functions over a plain parameter tree.

``params`` is ``{"embed", "blocks", "final_norm", "head"}``; a head tied to the embedding has no
weights and no entry. ``blocks`` is either one tree whose leaves carry a leading layer axis
(``scanned``: one compiled body, quick to compile, the choice for many layers) or a tree per layer
under ``"00", "01", ...`` (unrolled: no copy of a layer's slice out of the stack, faster where a
pass is small). Everything else is indifferent to which.

The key/value cache is an argument and a result. ``encode`` runs tokens for their cache alone;
``forward`` runs tokens that attend to it, for many rows of each example at once.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from robustjax.models.architectures import port_of
from robustjax.models.attention import Context, Stretch, as_cached, causal
from robustjax.models.layers import Alone, Numerics, Rivalry, Trunk
from robustjax.models.port import TRUNK_AXES, ModelConfig, Port

Params = dict[str, Any]

Head = Literal["classifier", "lm"]
Remat = Literal["none", "dots", "blocks"]
"""What a training step keeps of its forward pass for the backward pass: everything; of the blocks
only the products with weights; only what goes into each block. The rest is computed again."""

_KEEP = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


_CUTS = ("dynamic_slice", "squeeze", "reshape", "convert_element_type", "broadcast_in_dim")


def _keeps_but_cuts(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether a gradient pass keeps what its forward pass computed: all but parts of arrays."""
    return primitive.name not in _CUTS


@dataclasses.dataclass(frozen=True)
class Definition:
    """Everything that fixes a model's function but its weights; hashable, so a static argument.

    Attributes:
        config: shape of the model.
        head: what the model puts out: class scores or next-token scores.
        num_classes: classes of a classifier head (unused for ``lm``).
        numerics: number formats.
        scanned: whether layers run under ``lax.scan`` over stacked weights.
        remat: what training computes again in the backward pass to save memory. Attacks compute
            nothing again: the few tokens they run leave little to keep.
    """

    config: ModelConfig
    head: Head = "classifier"
    num_classes: int = 2
    numerics: Numerics = Numerics()
    scanned: bool = False
    remat: Remat = "none"

    @property
    def port(self) -> Port:
        """The architecture."""
        return port_of(self.config)

    @property
    def outputs(self) -> int:
        """Width of the head's output: classes, or rows of the vocabulary."""
        return self.num_classes if self.head == "classifier" else self.config.vocab


class Cache(NamedTuple):
    """Keys and values of every layer for tokens that are not run again.

    Attributes:
        keys: a tuple of ``L`` arrays ``[B, G, P, K]``, or one array ``[L, B, G, P, K]`` when the
            layers are scanned. An axis ``C`` follows ``B`` if each row has its own.
        values: the same for values.
        mask: ``[B, P]`` or ``[B, C, P]``, true at real tokens.
    """

    keys: Any
    values: Any
    mask: Bool[Array, "B *C P"]

    def layer(self, index: int | Array) -> Context:
        """The cache of one layer."""
        if isinstance(self.keys, tuple):
            return Context(self.keys[int(index)], self.values[int(index)], self.mask)
        return Context(_item(self.keys, index), _item(self.values, index), self.mask)

    def first(self, count: int) -> "Cache":
        """The cache of the first ``count`` tokens."""
        keys, values = jax.tree.map(lambda x: x[..., :count, :], (self.keys, self.values))
        return Cache(keys, values, self.mask[..., :count])

    def of_examples(self, take: Callable[[Array, int], Array]) -> "Cache":
        """The cache of some examples, which a function takes out of an axis of an array."""
        axis = 0 if isinstance(self.keys, tuple) else 1
        keys, values = jax.tree.map(lambda x: take(x, axis), (self.keys, self.values))
        return Cache(keys, values, take(self.mask, 0))

    def of_only_row(self) -> "Cache":
        """The cache of a single row, as all rows share it."""
        keys, values = jax.tree.map(lambda x: jnp.squeeze(x, axis=-4), (self.keys, self.values))
        return Cache(keys, values, self.mask[:, 0])


def cache_axes(ndim: int) -> tuple[str | None, ...]:
    """The logical axis names of keys and values that all rows of an example share.

    Args:
        ndim: axes of the array: one layer's has four, all layers stacked five.
    """
    return ("layers",) * (ndim - 4) + ("examples", "heads", None, None)


def init(definition: Definition, seed: int | UInt32[Any, ""]) -> Params:
    """Fresh weights; the same numbers whether scanned or not."""
    keys = jax.random.split(jax.random.key(seed), definition.config.layers + 1)
    trunk = _trunk_state(definition, keys[0])
    blocks = [_block_state(definition, key) for key in keys[1:]]
    return trunk | {"blocks": join_layers(definition, blocks)}


def abstract_params(definition: Definition) -> Params:
    """Shapes and types of the weights, without allocating any."""
    trunk, block = _abstract_parts(definition)
    layers = definition.config.layers
    if definition.scanned:
        blocks = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((layers, *leaf.shape), leaf.dtype), block
        )
    else:
        blocks = {layer_name(i): _copy(block) for i in range(layers)}
    return _copy(trunk) | {"blocks": blocks}


def count_params(definition: Definition) -> int:
    """Number of weights, embeddings and head included, counted without allocating."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(definition)))


def logical_axes(definition: Definition) -> Params:
    """The logical axis names of every weight, in the shape of ``params``."""
    trunk_shapes, block_shapes = _abstract_parts(definition)
    block = _matching(definition.port.block_axes, block_shapes)
    if definition.scanned:
        blocks = jax.tree.map(
            lambda axes: ("layers", *axes), block, is_leaf=lambda x: isinstance(x, tuple)
        )
    else:
        blocks = {layer_name(i): _copy(block) for i in range(definition.config.layers)}
    trunk = _matching(TRUNK_AXES, trunk_shapes)
    if definition.head == "classifier":
        trunk["head"] = {"kernel": ("embed", "classes")}
    return trunk | {"blocks": blocks}


def layer_name(index: int) -> str:
    """Key of a layer in unrolled ``params``; zero-padded so that names sort as numbers."""
    return f"{index:02d}"


def join_layers(definition: Definition, blocks: Sequence[Params]) -> Params:
    """Per-layer trees to the layout of ``params["blocks"]``."""
    if definition.scanned:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return {layer_name(i): block for i, block in enumerate(blocks)}


def layer_params(definition: Definition, params: Params, index: int | Array) -> Params:
    """The weights of one layer, whatever the layout; scanned layers have numbers within a scan."""
    if definition.scanned:
        return jax.tree.map(lambda leaf: _item(leaf, index), params["blocks"])
    return params["blocks"][layer_name(int(index))]


def _item(stacked: Array, index: int | Array) -> Array:
    return jax.lax.dynamic_index_in_dim(stacked, index, keepdims=False)


def encode(
    definition: Definition, params: Params, tokens: Int[Array, "B P"], mask: Bool[Array, "B P"]
) -> Cache:
    """Runs a prefix for its keys and values.

    Args:
        tokens: right-padded ids; token ``i`` stands at position ``i``.
        mask: true at real tokens.

    Returns:
        The cache of all layers. Of the last block only keys and values are computed.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)[:, None]
    x = embed(definition, params, tokens)[:, None]
    _, kept = _run(
        definition, params, x, positions, mask[:, None], (), read=None, last_keys_only=True
    )
    return Cache(*kept, mask[:, None]).of_only_row()


def forward(
    definition: Definition,
    params: Params,
    x: Float[Array, "B C T D"],
    positions: Int[Array, "B C T"],
    mask: Bool[Array, "B C T"],
    caches: Sequence[Cache] = (),
    read: Int[Array, "B C R"] | None = None,
    first: Alone | None = None,
    stretches: tuple[Stretch, ...] = (),
) -> Float[Array, "B C R D"]:
    """Final hidden states (before the final norm) at the read positions.

    Args:
        x: embeddings of the tokens to run.
        positions: their positions, counted over the whole prompt.
        mask: true at real tokens. Token ``i`` sees real tokens ``j <= i`` and every real token of
            the caches.
        caches: what came before, shared by all rows ``C`` of an example or each row's own.
        read: indices into ``T``; in the last block only these get queries, attention and
            feed-forward. All positions when None.
        first: what ``first_alone`` knows of the tokens already.
        stretches: rows of several widths, laid end to end in ``T`` (``C`` is 1); none if all of
            ``T`` is a row.

    Raises:
        ValueError: if ``first`` is given for scanned layers, which are all run alike.
    """
    if definition.scanned and first is not None:
        raise ValueError("scanned layers are all run alike: leave out first")
    hidden, _ = _run(
        *(definition, params, x, positions, mask, caches),
        read=read,
        last_keys_only=False,
        first=first,
        stretches=stretches,
    )
    return hidden


def first_alone(
    definition: Definition,
    params: Params,
    x: Float[Array, "B C T D"],
    positions: Int[Array, "B C T"],
) -> Alone:
    """What the first block computes of each token by itself, given the embeddings."""
    return _block(definition, layer_params(definition, params, 0)).alone(x, positions)


def forward_and_keep(
    definition: Definition,
    params: Params,
    x: Float[Array, "B C T D"],
    positions: Int[Array, "B C T"],
    mask: Bool[Array, "B C T"],
    caches: Sequence[Cache] = (),
    read: Int[Array, "B C R"] | None = None,
) -> tuple[Float[Array, "B C R D"], Cache]:
    """``forward``, with the cache of the tokens it runs, each row's own."""
    hidden, kept = _run(
        definition, params, x, positions, mask, caches, read=read, last_keys_only=False
    )
    return hidden, Cache(*kept, mask)


def embed(
    definition: Definition, params: Params, tokens: Int[Array, "*batch"]
) -> Float[Array, "*batch D"]:
    """Token embeddings."""
    return _trunk(definition, params).embed(tokens)


def project(
    definition: Definition, params: Params, hidden: Float[Array, "*batch D"]
) -> Float[Array, "*batch N"]:
    """Final norm and head: float32 scores of classes, or of the vocabulary."""
    return _trunk(definition, params).project(hidden)


def rivalry(
    definition: Definition,
    params: Params,
    hidden: Float[Array, "B C R D"],
    tokens: Int[Array, "B R"],
) -> Rivalry:
    """The next-token score of one token at each place, and what it has against it."""
    return _trunk(definition, params).rivalry(hidden, tokens)


def last_real(mask: Bool[Array, "*batch T"]) -> Int[Array, "*batch"]:
    """Index of the last real token of each row (0 for an empty row)."""
    width = mask.shape[-1]
    index = jnp.broadcast_to(jnp.arange(width), mask.shape)
    return jnp.where(mask, index, 0).max(-1)


def apply(
    definition: Definition,
    params: Params,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    shift: Float[Array, "B T D"] | None = None,
) -> Float[Array, "..."]:
    """Scores of whole token rows, padded on either side.

    Positions count real tokens, so padding never moves a position.

    Args:
        shift: added to the tokens' embeddings.

    Returns:
        ``[B, N]`` class scores pooled at the last real token, or ``[B, T, V]`` next-token scores.
    """
    positions = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)[:, None]
    embedded = embed(definition, params, tokens)
    x = (embedded if shift is None else embedded + shift.astype(embedded.dtype))[:, None]
    is_lm = definition.head == "lm"
    hidden, _ = _run(
        definition,
        params,
        x,
        positions,
        mask[:, None],
        (),
        read=None if is_lm else last_real(mask)[:, None, None],
        last_keys_only=False,
        is_trained=True,
    )
    return project(definition, params, hidden[:, 0] if is_lm else hidden[:, 0, 0])


def _run(
    definition: Definition,
    params: Params,
    x: Array,
    positions: Array,
    mask: Array,
    caches: Sequence[Cache],
    *,
    read: Array | None,
    last_keys_only: bool,
    is_trained: bool = False,
    first: Alone | None = None,
    stretches: tuple[Stretch, ...] = (),
) -> tuple[Array, tuple[Any, Any]]:
    """The layer loop: all blocks but the last in one way, the last only where it is read.

    Args:
        last_keys_only: of the last block only keys and values are of interest.
        is_trained: gradients of the weights may be asked for; there are no caches then.
    """
    visible, visible_to_read = causal(mask, read, stretches)
    last = definition.config.layers - 1

    def middle(x: Array, weights: Params, contexts: Sequence[Context]) -> tuple[Array, Any]:
        x, pair = _block(definition, weights)(x, positions, visible, contexts, None)
        return x, as_cached(*pair)

    remat = definition.remat if is_trained else "none"
    if remat != "none":
        # A scan's body is compiled once as it stands, so nothing has to keep the two passes apart.
        middle = jax.checkpoint(middle, policy=_KEEP[remat], prevent_cse=not definition.scanned)

    if definition.scanned and is_trained:
        # Each layer's gradient is written to its place once; by number, all would be added up.
        stacked = jax.tree.map(lambda leaf: leaf[:last], params["blocks"])
        x, kept = jax.lax.scan(lambda x, weights: middle(x, weights, ()), x, stacked)
    elif definition.scanned:
        # By number: what a scan goes over without its last layer would be a copy of all the others.
        def body(x: Array, index: Array) -> tuple[Array, Any]:
            contexts = [cache.layer(index) for cache in caches]
            return middle(x, layer_params(definition, params, index), contexts)

        # A gradient pass would keep every layer's weights, cut out, from its forward pass.
        body = jax.checkpoint(body, policy=_keeps_but_cuts, prevent_cse=False)
        x, kept = jax.lax.scan(body, x, jnp.arange(last))
    else:
        kept = []
        for index in range(last):
            contexts = [cache.layer(index) for cache in caches]
            weights = layer_params(definition, params, index)
            if index == 0 and first is not None:
                block = _block(definition, weights)
                x, pair = block(x, positions, visible, contexts, None, first)
                pair = as_cached(*pair)
            else:
                x, pair = middle(x, weights, contexts)
            kept.append(pair)

    block = _block(definition, layer_params(definition, params, last))
    if last_keys_only:
        pair = block.keys_values(x, positions)
    else:
        contexts = [cache.layer(last) for cache in caches]
        x, pair = block(x, positions, visible_to_read, contexts, read, first if last == 0 else None)
    pair = as_cached(*pair)
    if definition.scanned:
        keys, values = (
            jnp.concatenate([some, one[None]]) for some, one in zip(kept, pair, strict=True)
        )
    else:
        keys, values = zip(*kept, pair, strict=True)  # type: ignore[assignment]
    return x, (keys, values)


# NNX modules are split once into a graph definition and a plain tree; inside a trace the tree is
# merged back, which costs tracing time only.


def _block_module(definition: Definition, key: Array) -> nnx.Module:
    return definition.port.block(definition.config, definition.numerics, rngs=nnx.Rngs(key))


def _trunk_module(definition: Definition, key: Array) -> nnx.Module:
    return definition.port.trunk(
        definition.config,
        definition.numerics,
        head=definition.head,
        outputs=definition.outputs,
        rngs=nnx.Rngs(key),
    )


def _block_state(definition: Definition, key: Array) -> Params:
    return nnx.to_pure_dict(nnx.state(_block_module(definition, key), nnx.Param))


def _trunk_state(definition: Definition, key: Array) -> Params:
    return nnx.to_pure_dict(nnx.state(_trunk_module(definition, key), nnx.Param))


@functools.lru_cache(maxsize=64)
def _abstract_parts(definition: Definition) -> tuple[Params, Params]:
    """Shapes of the trunk and of one block."""
    make = [functools.partial(state, definition) for state in (_trunk_state, _block_state)]
    trunk, block = (jax.eval_shape(lambda part=part: part(jax.random.key(0))) for part in make)
    return trunk, block


def _matching(table: Any, shapes: Params) -> Params:
    """The entries of a table of axes for the weights there are."""
    return {
        module: {name: table[module][name] for name in weights}
        for module, weights in shapes.items()
    }


def _copy(tree: Params) -> Params:
    return {module: dict(weights) for module, weights in tree.items()}


@functools.lru_cache(maxsize=64)
def _graphs(definition: Definition) -> tuple[Any, Any]:
    key = jax.random.key(0)
    trunk, block = (
        nnx.split(nnx.eval_shape(functools.partial(make, definition, key)))[0]
        for make in (_trunk_module, _block_module)
    )
    return trunk, block


def _block(definition: Definition, weights: Params) -> Any:
    return nnx.merge(_graphs(definition)[1], weights)


def _trunk(definition: Definition, params: Params) -> Trunk:
    weights = {name: part for name, part in params.items() if name != "blocks"}
    return nnx.merge(_graphs(definition)[0], weights)
