"""A run on a slice, planned: what each of its programs takes there, and what all of it costs."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from robustjax.planning.ahead_of_time import HBM_SHARE, Compiled, compile_for
from robustjax.planning.chips import Slice
from robustjax.planning.work import Work

SECONDS_AN_HOUR = 3600


@dataclasses.dataclass(frozen=True)
class Planned:
    """A program of the run, compiled.

    Attributes:
        work: which, and how often it runs.
        compiled: what it takes.
    """

    work: Work
    compiled: Compiled

    @property
    def peak(self) -> int:
        """Bytes of a device's memory, with what stands there beside the program."""
        return self.compiled.peak + self.work.beside

    @property
    def seconds(self) -> float:
        """The bound of all its runs."""
        return self.work.runs * self.compiled.bound.seconds


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """All programs of a run.

    Attributes:
        chosen: the slice.
        mesh: sizes of the mesh's axes, by name.
        programs: one after the other.
    """

    chosen: Slice
    mesh: Mapping[str, int]
    programs: Sequence[Planned]

    @property
    def peak(self) -> int:
        """Bytes of a device's memory that the run takes at its worst."""
        return max(one.peak for one in self.programs)

    @property
    def fits(self) -> bool:
        """Whether that leaves a tenth of the memory free."""
        return self.peak <= HBM_SHARE * self.chosen.generation.hbm_bytes

    @property
    def chip_hours(self) -> float:
        """Of the bounds of all programs; the host's work and compilation are left out."""
        seconds = sum(one.seconds for one in self.programs)
        return seconds * self.chosen.chips / SECONDS_AN_HOUR

    def to_json(self, price: float | None = None) -> dict[str, Any]:
        """What stands in `plan.json`.

        Args:
            price: of a chip for an hour, in any currency.
        """
        return {
            "topology": self.chosen.name,
            "chips": self.chosen.chips,
            "mesh": dict(self.mesh),
            "hbm": self.chosen.generation.hbm_bytes,
            "peak": self.peak,
            "fits": self.fits,
            "chip_hours": self.chip_hours,
            "cost": None if price is None else self.chip_hours * price,
            "programs": {one.work.name: _row(one) for one in self.programs},
        }


def plan_run(
    works: Iterable[Work],
    mesh: Mesh,
    chosen: Slice,
    tick: Callable[[str], None] = lambda name: None,
) -> RunPlan:
    """Compiles all programs of a run.

    Args:
        works: the programs, laid out on the mesh.
        mesh: see `ahead_of_time.mesh_of`.
        chosen: the slice.
        tick: told the name of each before it is compiled.

    Raises:
        UserError: one does not fit the memory.
    """
    programs = []
    for work in works:
        tick(work.name)
        programs.append(Planned(work, compile_for(work.program, mesh, chosen)))
    return RunPlan(chosen, dict(mesh.shape), programs)


def _row(one: Planned) -> dict[str, Any]:
    compiled, bound = one.compiled, one.compiled.bound
    costs = compiled.costs
    return {
        "runs": one.work.runs,
        "arguments": compiled.arguments,
        "temporaries": compiled.temporaries,
        "results": compiled.results,
        "code": compiled.code,
        "beside": one.work.beside,
        "peak": one.peak,
        "flops": costs.total_flops,
        "flops_by_passes": {str(passes): count for passes, count in costs.flops.items()},
        "bytes_moved": costs.bytes,
        "collective_bytes": costs.sent,
        "seconds": {**dataclasses.asdict(bound), "bound": bound.seconds},
        "limit": bound.limit,
        "seconds_compile": round(compiled.seconds_compile, 1),
    }


def table(plan: Mapping[str, Any]) -> list[str]:
    """A plan for people, from what stands in `plan.json`."""
    hbm = plan["hbm"]
    header = (
        *("program", "arguments", "temporary", "peak", "of HBM", "TFLOP", "moved", "sent"),
        *("bound", "by", "runs", "compiled in"),
    )
    rows = [header]
    for name, one in plan["programs"].items():
        rows.append(
            (
                name,
                _gib(one["arguments"]),
                _gib(one["temporaries"]),
                _gib(one["peak"]),
                f"{100 * one['peak'] / hbm:.0f} %",
                f"{one['flops'] / 1e12:.3g}",
                _gib(one["bytes_moved"]),
                _gib(sum(one["collective_bytes"].values())),
                f"{1e3 * one['seconds']['bound']:.3g} ms",
                one["limit"],
                f"{one['runs']:,}",
                f"{one['seconds_compile']:.0f} s",
            )
        )
    return aligned(rows)


def collectives(plan: Mapping[str, Any]) -> list[str]:
    """What the programs of a plan exchange, by kind."""
    return [
        f"{name}: " + ", ".join(f"{kind} {_gib(sent)}" for kind, sent in sorted(kinds.items()))
        for name, one in plan["programs"].items()
        if (kinds := one["collective_bytes"])
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _gib(count: int | float) -> str:
    return f"{count / 2**30:.3f} GiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"
