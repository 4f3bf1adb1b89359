"""The cheapest way to run a search on a slice: mesh, batch and pass, found by compiling.

Plans are compared by the bound of their chip-seconds for one iteration on one example. What cannot
fit is left out before it is compiled: weights and prefixes alone say so. On each mesh the search
begins with the most examples that might fit in one pass, for weights are then read least often, and
halves pass and batch until the program fits.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

from robustjax.attacks.random_token import RandomToken
from robustjax.attacks.search import Attack
from robustjax.errors import UserError
from robustjax.models.port import ModelConfig
from robustjax.planning.ahead_of_time import HBM_SHARE, TooLargeError
from robustjax.planning.chips import Slice
from robustjax.planning.local import pass_size, with_smaller_pass
from robustjax.planning.run_plan import RunPlan
from robustjax.runtime.mesh import MeshConfig


class Trial(NamedTuple):
    """One way to run a search.

    Attributes:
        mesh: sizes of its axes.
        batch_size: examples at once.
        attack: its settings, with the pass that is tried.
    """

    mesh: MeshConfig
    batch_size: int
    attack: Attack


class Suggestion(NamedTuple):
    """The cheapest one.

    Attributes:
        trial: which.
        plan: what its programs take.
        chip_seconds: of one iteration on one example, by the bound.
        compiled: trials that were compiled.
        left_out: trials that could not fit.
    """

    trial: Trial
    plan: RunPlan
    chip_seconds: float
    compiled: int
    left_out: int


def suggest(
    attack: Attack,
    shape: ModelConfig,
    chosen: Slice,
    most_rows: int,
    least_bytes: Callable[[Trial], int],
    compile_trial: Callable[[Trial], RunPlan],
) -> Suggestion:
    """Finds the cheapest plan that fits.

    Args:
        attack: its settings; where they leave the pass open, it begins with all candidates.
        shape: of the victim; heads are never cut.
        chosen: the slice.
        most_rows: examples that there are.
        least_bytes: of a device, that a trial takes before its programs work with anything.
        compile_trial: compiles the programs of one step on one batch. Raises TooLargeError.

    Raises:
        UserError: nothing fits.
    """
    room = HBM_SHARE * chosen.generation.hbm_bytes
    if not isinstance(attack, RandomToken):
        attack = dataclasses.replace(attack, candidate_chunk=pass_size(attack))
    best: Suggestion | None = None
    compiled = left_out = 0
    for mesh in meshes(shape, chosen):
        rows = mesh.data
        while 2 * rows <= most_rows:
            rows *= 2
        trial: Trial | None = Trial(mesh, rows, attack)
        while trial is not None:
            if least_bytes(trial) > room:
                left_out += 1
                trial = _fewer_examples(trial)
                continue
            compiled += 1
            plan = _compiled(compile_trial, trial)
            if plan is None:
                trial = _smaller(trial)
                continue
            seconds = cost(plan, trial)
            if best is None or seconds < best.chip_seconds:
                best = Suggestion(trial, plan, seconds, 0, 0)
            break
    if best is None:
        raise UserError(
            f"nothing fits {chosen.name}: {left_out} plans were too large for it by weights and "
            f"prefixes alone, {compiled} when they were compiled; take more chips, or narrower "
            "numbers (config.model.numerics)"
        )
    return best._replace(compiled=compiled, left_out=left_out)


def meshes(shape: ModelConfig, chosen: Slice) -> Iterator[MeshConfig]:
    """Meshes on a slice that split weights over 1, 2, 4, ... devices and examples over the rest."""
    tensor = 1
    while tensor <= chosen.chips:
        if not (chosen.chips % tensor or shape.heads % tensor or shape.key_value_heads % tensor):
            yield MeshConfig(chosen.chips // tensor, 1, tensor)
        tensor *= 2


def cost(plan: RunPlan, trial: Trial) -> float:
    """Chip-seconds of one iteration on one example, of a plan of one step on one batch."""
    seconds = sum(one.seconds for one in plan.programs)
    return seconds * plan.chosen.chips / trial.batch_size


def _compiled(compile_trial: Callable[[Trial], RunPlan], trial: Trial) -> RunPlan | None:
    """The plan of a trial, or None if it does not fit."""
    try:
        plan = compile_trial(trial)
    except TooLargeError:
        return None
    return plan if plan.fits else None


def _smaller(trial: Trial) -> Trial | None:
    """The same with a pass of half the size, or else with half the examples."""
    attack = with_smaller_pass(trial.attack)
    return _fewer_examples(trial) if attack is None else trial._replace(attack=attack)


def _fewer_examples(trial: Trial) -> Trial | None:
    half = trial.batch_size // 2
    return None if half < trial.mesh.data else trial._replace(batch_size=half)
