"""The programs of a run, and how often it runs each."""

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from robustjax.attacks.frame import Inputs, Program, Shape, abstract_inputs
from robustjax.attacks.search import Attack, module_of
from robustjax.models import victim as victims
from robustjax.models.transformer import Definition
from robustjax.planning import layouts
from robustjax.runtime.mesh import AxisRules, named_sharding, replicated
from robustjax.training.embedding import EmbeddingAttack
from robustjax.training.loop import TrainConfig
from robustjax.training.optimizer import make_optimizer
from robustjax.training.step import TrainBatch, abstract_state, make_train_step


class Layout(NamedTuple):
    """Where arrays go.

    Attributes:
        mesh: the devices.
        rules: how named axes are split over them.
    """

    mesh: Mesh
    rules: AxisRules = AxisRules()


class Work(NamedTuple):
    """A program of a run.

    Attributes:
        name: for people.
        program: with arguments laid out on a mesh.
        runs: how often the run runs it.
        is_once: whether a search runs it once a batch, and not in each of its steps.
        beside: bytes a device that stand in its memory meanwhile and are no arguments.
    """

    name: str
    program: Program
    runs: int
    is_once: bool = False
    beside: int = 0


def usual_programs(attack: Attack, inputs: Inputs) -> tuple[dict[str, Program], dict[str, Program]]:
    """What a search runs once on a batch, and what in each of its steps, by name."""
    programs = module_of(attack).programs(attack, inputs)
    once = {
        name: one
        for name, one in programs.items()
        if name.startswith("encode") or name == "score_start"
    }
    return once, {name: one for name, one in programs.items() if name not in once}


def num_steps(attack: Attack) -> int:
    """Steps of a search, each of which may be several iterations."""
    return math.ceil(attack.num_iterations / module_of(attack).iterations_of_step(attack, 1))


def search_work(
    attack: Attack,
    victim: Definition,
    companion: Definition | None,
    shape: Shape,
    rows: int,
    layout: Layout,
) -> list[Work]:
    """The programs of a search on one batch that is never left early.

    Args:
        attack: its settings.
        victim: the model under attack.
        companion: the model that the attack asks as well, or None.
        shape: the bucket.
        rows: examples of the batch.
        layout: the mesh.
    """
    inputs = layouts.search_inputs(abstract_inputs(victim, shape, rows, companion), *layout)
    once, each = usual_programs(attack, inputs)
    steps = num_steps(attack)
    return [
        Work(
            name,
            layouts.search_program(program, rows, *layout),
            runs=1 if name in once else steps,
            is_once=name in once,
        )
        for name, program in (once | each).items()
    ]


def training_work(
    definition: Definition,
    config: TrainConfig,
    width: int,
    layout: Layout,
    embedding: EmbeddingAttack | None = None,
) -> tuple[Work, int]:
    """A training step over a batch of texts of one width, and what training keeps.

    The weights that training started from stay in memory beside those that it changes.

    Returns:
        The step, and the bytes a device that stay while the weights are used for other things.
    """
    mesh, rules = layout
    params = layouts.weights(definition, mesh, rules)
    optimizer = make_optimizer(
        config.optimizer, frozenset({"blocks"} if definition.scanned else ())
    )
    state = abstract_state(definition, optimizer, params, mesh)
    step = make_train_step(definition, optimizer, state, embedding)
    rows = config.batch_size // config.microbatch_size, config.microbatch_size
    fields: dict[str, tuple[tuple[int, ...], Any]] = {
        "tokens": ((*rows, width), np.int32),
        "mask": ((*rows, width), np.bool_),
        "label": (rows, np.int32),
        "weight": (rows, np.float32),
    }
    if embedding is not None:
        fields["free"] = ((*rows, width), np.bool_)

    def placed(shape: tuple[int, ...], dtype: Any) -> Any:
        axes = (None, "batch") + (None,) * (len(shape) - 2)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=named_sharding(mesh, rules, axes, shape))

    batch = TrainBatch(**{name: placed(*one) for name, one in fields.items()})
    rate = jax.ShapeDtypeStruct((), np.float32, sharding=replicated(mesh))
    started_from = bytes_a_device(params)
    work = Work("train_step", Program(step, (state, batch, rate)), 1, beside=started_from)
    return work, started_from + bytes_a_device(state.opt_state)


def answer_work(definition: Definition, rows: int, width: int, layout: Layout) -> Work:
    """Asking a model about whole texts; it runs once."""
    mesh, rules = layout
    params = layouts.weights(definition, mesh, rules)
    ids, mask = (
        layouts.batch_rows((rows, width), dtype, mesh, rules) for dtype in (np.int32, np.bool_)
    )
    function = functools.partial(victims.apply, definition)
    return Work("answer", Program(function, (params, ids, mask)), 1)


def bytes_a_device(tree: object) -> int:
    """Bytes that arrays which are laid out take on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
