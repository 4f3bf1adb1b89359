"""The victim: a definition, its weights on a mesh, and the tokenizer it reads with."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int

from robustjax.data.batching import group_by_bucket, pad_rows
from robustjax.data.tokens import Tokenizer
from robustjax.errors import UserError
from robustjax.models import transformer
from robustjax.models.transformer import Cache, Definition, Params
from robustjax.runtime.mesh import AxisRules, named_sharding, replicated, tree_shardings
from robustjax.runtime.progress import Progress
from robustjax.runtime.rows import fetch, lay_out, put

BUCKET_EDGES = tuple(1 << power for power in range(5, 18))
"""Widths that token rows are padded to, 32 to 131,072: few shapes, hence few compilations."""
_PATIENCE_SECONDS = 3.0
"""How long scoring may take before it shows its progress."""


@dataclasses.dataclass(frozen=True, eq=False)
class Victim:
    """A model that can be asked and attacked.

    Attributes:
        name: the scaling point, or where the model came from.
        family: models that share a tokenizer and a training recipe.
        definition: the model's function.
        params: its weights, laid out on ``mesh`` by ``rules``.
        tokenizer: text to ids.
        mesh: the devices.
        rules: how named axes are split over the mesh.
        batch_size: rows that are scored at once by ``logits``.
    """

    name: str
    family: str
    definition: Definition
    params: Params
    tokenizer: Tokenizer
    mesh: Mesh
    rules: AxisRules = AxisRules()
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.tokenizer.num_ids > self.definition.config.vocab:
            raise UserError(
                f"model {self.name}: its tokenizer has {self.tokenizer.num_ids} ids, its embedding "
                f"only {self.definition.config.vocab} rows; give the tokenizer the model was made "
                "with"
            )

    @property
    def num_params(self) -> int:
        """Number of weights, embeddings and head included."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def context(self) -> int:
        """Longest prompt the model is meant for, in tokens."""
        return self.definition.config.context

    def with_params(self, params: Params) -> "Victim":
        """The same victim with other weights."""
        return dataclasses.replace(self, params=params)

    def put_examples(self, tree: Any) -> Any:
        """Places arrays, which all processes have, with their first axis split over examples."""

        def one(x: Any) -> Array:
            axes = ("examples",) + (None,) * (np.ndim(x) - 1)
            return put(x, named_sharding(self.mesh, self.rules, axes, np.shape(x)))

        return jax.tree.map(one, tree)

    def put_replicated(self, tree: Any) -> Any:
        """Places arrays on every device of the mesh."""
        return jax.tree.map(lambda x: put(x, replicated(self.mesh)), tree)

    def lay_out_cache(self, cache: Cache) -> Cache:
        """A cache split over examples and, as the weights that read it, over heads."""

        def sharding(leaf: Array, axes: tuple[str | None, ...]) -> NamedSharding:
            return named_sharding(self.mesh, self.rules, axes, leaf.shape)

        def pairs(tree: Any) -> Any:
            return jax.tree.map(lambda x: sharding(x, transformer.cache_axes(x.ndim)), tree)

        mask: Any = sharding(cache.mask, ("examples", None))
        return lay_out(cache, Cache(pairs(cache.keys), pairs(cache.values), mask))

    def logits(self, texts: Sequence[str]) -> Float[np.ndarray, "M N"]:
        """Class scores of texts, read whole, in length buckets; shows progress if it takes long.

        Args:
            texts: the prompts.

        Raises:
            UserError: for a text that is empty or longer than the context.
        """
        return self.logits_of_ids(self.tokenizer.encode(list(texts)))

    def logits_of_ids(self, rows: Sequence[Sequence[int]]) -> Float[np.ndarray, "M N"]:
        """Class scores of token rows; see ``logits``."""
        if self.definition.head != "classifier":
            raise UserError(f"model {self.name} has a language-model head, not a classifier's")
        return self.score(rows, apply, self.definition.num_classes, "logits")

    def score(
        self,
        rows: Sequence[Sequence[int]],
        function: Callable[[Definition, Params, Array, Array], Float[Array, "B N"]],
        width: int,
        label: str,
    ) -> Float[np.ndarray, "M N"]:
        """Figures of token rows, read whole, in length buckets; shows progress if it takes long.

        Args:
            rows: ids of each text, unpadded.
            function: compiled; from definition, weights, ids ``[B, T]`` and mask ``[B, T]`` to the
                figures of each row, on which other rows and padding have no influence.
            width: figures of a row.
            label: name on the progress line.

        Raises:
            UserError: for a row that is empty or longer than the context.
        """
        out = np.zeros((len(rows), width), np.float32)
        for chosen, figures in self.score_batches(rows, function, label):
            out[chosen] = figures
        return out

    def score_batches(
        self,
        rows: Sequence[Sequence[int]],
        function: Callable[[Definition, Params, Array, Array], Float[Array, "B ..."]],
        label: str,
    ) -> Iterator[tuple[list[int], Float[np.ndarray, "..."]]]:
        """``score`` batch by batch: places of rows, and the figures of each, as wide as they are.

        Raises:
            UserError: for a row that is empty or longer than the context.
        """
        check_lengths(rows, self.context)
        buckets = group_by_bucket([len(row) for row in rows], BUCKET_EDGES)
        with Progress(len(rows), label, "texts", patience=_PATIENCE_SECONDS) as progress:
            for edge, members in buckets.items():
                for start in range(0, len(members), self.batch_size):
                    chosen = members[start : start + self.batch_size]
                    filler = [chosen[-1]] * (self.batch_size - len(chosen))
                    ids, mask = pad_rows(
                        [rows[i] for i in [*chosen, *filler]], edge, self.tokenizer.pad_id
                    )
                    figures = function(
                        self.definition, self.params, *self.put_examples((ids, mask))
                    )
                    yield list(chosen), fetch(figures)[: len(chosen)]
                    progress.advance(len(chosen))


def check_lengths(rows: Sequence[Sequence[int]], context: int) -> None:
    """Raises UserError for the first row that is empty or longer than the context."""
    for index, row in enumerate(rows):
        if not 1 <= len(row) <= context:
            raise UserError(
                f"text {index} has {len(row)} tokens; between 1 and the model's context of "
                f"{context} are possible: shorten or drop it"
            )


@functools.partial(jax.jit, static_argnames=("definition",))
def apply(
    definition: Definition, params: Params, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "..."]:
    """``transformer.apply``, compiled."""
    return transformer.apply(definition, params, tokens, mask)


def param_shardings(definition: Definition, mesh: Mesh, rules: AxisRules) -> Any:
    """The sharding of every weight."""
    return tree_shardings(
        mesh,
        rules,
        transformer.logical_axes(definition),
        like=transformer.abstract_params(definition),
    )


def init_params(definition: Definition, seed: int, mesh: Mesh, rules: AxisRules) -> Params:
    """Fresh weights, made in place on the mesh."""
    return _maker(definition, mesh, rules)(np.uint32(seed % 2**32))


@functools.lru_cache(maxsize=64)  # one program for all seeds
def _maker(definition: Definition, mesh: Mesh, rules: AxisRules) -> Callable[[Any], Params]:
    return jax.jit(
        functools.partial(transformer.init, definition),
        out_shardings=param_shardings(definition, mesh, rules),
    )


def place_params(params: Params, definition: Definition, mesh: Mesh, rules: AxisRules) -> Params:
    """Lays host weights out on the mesh."""
    return jax.tree.map(put, params, param_shardings(definition, mesh, rules))
