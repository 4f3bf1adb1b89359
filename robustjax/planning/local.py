"""The largest batch of an attack that the memory of a device holds, found by compiling.

What a search keeps are the arguments of its programs: weights, prefix caches, slots. Beside them
stands the working memory of one program at a time, which the compiler knows exactly. Both grow with
the number of examples along a straight line, so two compilations tell where it meets the limit, and
a third at that place checks it. The working memory stops growing where a pass is full (see
``attacks.passes``): if there is room at that place, the search goes on from there, along the line
that it has come. Nothing is run and no weight is loaded.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from robustjax.attacks import frame
from robustjax.attacks.frame import Program, Shape, abstract_inputs
from robustjax.attacks.random_token import RandomToken
from robustjax.attacks.search import Attack, module_of
from robustjax.errors import UserError
from robustjax.models.transformer import Definition

SHARE_OF_MAIN_MEMORY = 0.8
"""Share of the free main memory that a search on a CPU may take; the rest is for the host."""
SHARE_OF_DEVICE_MEMORY = 0.95
_MEMINFO = Path("/proc/meminfo")


class DeviceMemory(NamedTuple):
    """Where a search is to run.

    Attributes:
        device: its kind, for people.
        free: bytes that are free.
        budget: bytes that a search may take.
    """

    device: str
    free: int
    budget: int


class ProgramMemory(NamedTuple):
    """Bytes of one program: what it is given, what it works with, and what it returns."""

    arguments: int
    working: int
    results: int


class Need(NamedTuple):
    """Bytes that a search takes at its worst.

    Attributes:
        rows: examples at once.
        kept: what stays there all the time: weights, prefixes and what else programs are given.
        programs: each program by name.
    """

    rows: int
    kept: int
    programs: dict[str, ProgramMemory]

    @property
    def peak(self) -> int:
        """What stays, and the largest program's own."""
        return self.kept + max(one.working + one.results for one in self.programs.values())


class Case(NamedTuple):
    """A search whose memory is in question.

    Attributes:
        victim: the model under attack, with the numerics it will have.
        companion: the model that the attack asks as well, or None.
        shape: the largest bucket.
    """

    victim: Definition
    companion: Definition | None
    shape: Shape


class Proposal(NamedTuple):
    """What fits.

    Attributes:
        attack: its settings, with a smaller pass if not even one example fitted.
        need: what it takes at the proposed batch.
        each: bytes that one more example takes; 0 if only one is wanted.
    """

    attack: Attack
    need: Need
    each: int


def device_memory() -> DeviceMemory:
    """What the first device has free; main memory for a CPU.

    Raises:
        UserError: the device does not say.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        free = _free_main_memory()
        return DeviceMemory(device.device_kind, free, int(SHARE_OF_MAIN_MEMORY * free))
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        raise UserError(f"{device.device_kind} does not say how much memory it has")
    free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return DeviceMemory(device.device_kind, free, int(SHARE_OF_DEVICE_MEMORY * free))


def need(attack: Attack, case: Case, rows: int) -> Need:
    """Compiles all programs of a search for a batch of so many examples, and adds up."""
    inputs = abstract_inputs(case.victim, case.shape, rows, case.companion)
    programs = module_of(attack).programs(attack, inputs)
    # Programs share weights and caches: each is counted once, however many are given it.
    given = {id(one): one for program in programs.values() for one in program.arguments}
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(list(given.values())))
    return Need(rows, kept, {name: _compiled(program) for name, program in programs.items()})


def propose(
    attack: Attack,
    case: Case,
    budget: int,
    most_rows: int,
    tick: Callable[[str], None] = lambda what: None,
) -> Proposal:
    """Finds the largest batch that fits; a smaller pass only if one example does not fit as it is.

    Args:
        attack: its settings; a pass that they leave open stays so if one example fits.
        case: models and bucket.
        budget: bytes that there are.
        most_rows: examples that there are; more at once are of no use.
        tick: told what is about to be compiled.

    Returns:
        A power of two of examples, or ``most_rows``.

    Raises:
        UserError: one example does not fit, however small the pass is.
    """

    @functools.cache
    def found(attack: Attack, rows: int) -> Need:
        tick(f"{rows} at once, {pass_field(attack)}={pass_setting(attack)}")
        return need(attack, case, rows)

    while (one := found(attack, 1)).peak > budget:
        smaller = with_smaller_pass(_settled(attack, case))
        if smaller is None:
            raise UserError(
                f"one example alone takes {one.peak / 1e9:.3f} GB, {one.kept / 1e9:.3f} GB "
                f"of it weights and caches, and only {budget / 1e9:.3f} GB may be used; take a "
                "device with more memory, narrower numbers (config.model.numerics), or shorter "
                "texts"
            )
        attack = smaller
    if most_rows == 1:
        return Proposal(attack, one, 0)
    best, each = one, _of_one_more(one, found(attack, 2))
    while True:
        rows = _batch_up_to(best.rows + (budget - best.peak) // each, most_rows)
        while (more := found(attack, rows)).peak > budget:  # the line was not quite straight
            rows = _batch_up_to(rows - 1, most_rows)
        if rows == best.rows:
            return Proposal(attack, best, each)
        best, each = more, _of_one_more(best, more)


def _of_one_more(fewer: Need, more: Need) -> int:
    """Bytes of one more example, on the line through two batches."""
    return max((more.peak - fewer.peak) // (more.rows - fewer.rows), 1)


def pass_field(attack: Attack) -> str:
    """The setting that says how many slots of an example are scored at once."""
    return "iterations_per_pass" if isinstance(attack, RandomToken) else "candidate_chunk"


def pass_setting(attack: Attack) -> int:
    """The value of this setting; 0 leaves it open."""
    return int(getattr(attack, pass_field(attack)))


def _settled(attack: Attack, case: Case) -> Attack:
    """With as many candidates in a pass as one example has if the settings leave it open."""
    if pass_setting(attack) or isinstance(attack, RandomToken):
        return attack
    inputs = abstract_inputs(case.victim, case.shape, 1, case.companion)
    at_once = frame.pass_of(attack, module_of(attack).slot_width(attack), inputs)
    return dataclasses.replace(attack, candidate_chunk=at_once.candidates)


def pass_size(attack: Attack) -> int:
    """How many slots of an example are scored at once, at most."""
    if isinstance(attack, RandomToken):
        return attack.iterations_per_pass
    return attack.candidate_chunk or attack.num_candidates


def with_smaller_pass(attack: Attack) -> Attack | None:
    """The same attack with at most half as many slots scored at once, or None if it is one."""
    half = pass_size(attack) // 2
    if not half:
        return None
    if isinstance(attack, RandomToken):
        return dataclasses.replace(attack, iterations_per_pass=half)
    chunk = next(size for size in range(half, 0, -1) if attack.num_candidates % size == 0)
    return dataclasses.replace(attack, candidate_chunk=chunk)


def _batch_up_to(fitting: int, most_rows: int) -> int:
    """All there are, or else the largest power of two that fits."""
    return most_rows if fitting >= most_rows else 1 << (fitting.bit_length() - 1)


def _compiled(program: Program) -> ProgramMemory:
    # Memory is laid out before machine code is made, so the code need not be good.
    options: Any = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    lowered = jax.jit(program.function).lower(*program.arguments)
    memory = lowered.compile(compiler_options=options).memory_analysis()
    if memory is None:
        raise UserError("the compiler of this device does not say what memory it needs")
    return ProgramMemory(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
    )


def _free_main_memory() -> int:
    if not _MEMINFO.exists():
        raise UserError("this system does not say how much memory is free (/proc/meminfo)")
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])
