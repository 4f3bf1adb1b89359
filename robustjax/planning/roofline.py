"""The least time that a program can take on a slice, and what keeps it from less.

Products at the peak rate, memory at the full bandwidth, collectives in rings over all links that a
group has: whichever of the three takes longest is the bound. Sums, softmax and sorting are left
out, and nothing reaches the peaks; two plans compare by it nevertheless.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

from robustjax.planning.chips import Slice
from robustjax.planning.hlo_costs import Collective, Costs

Limit = Literal["compute", "memory", "interconnect"]


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds of one run that each of the three takes at least.

    Attributes:
        compute: products, each in as many passes as its precision takes.
        memory: traffic of the main memory.
        interconnect: collectives, one after the other.
    """

    compute: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """The bound: all three at the same time."""
        return max(self.compute, self.memory, self.interconnect)

    @property
    def limit(self) -> Limit:
        """What it is that takes longest."""
        names: tuple[Limit, ...] = ("compute", "memory", "interconnect")
        return max(names, key=functools.partial(getattr, self))


def bound(costs: Costs, chosen: Slice, places: Sequence[tuple[int, ...]]) -> Bound:
    """The bound of a program.

    Args:
        costs: what a device does.
        chosen: where it runs.
        places: where in the torus each device of the mesh stands, the mesh flattened.
    """
    one = chosen.generation
    passes = sum(count * flops for count, flops in costs.flops.items())
    return Bound(
        compute=passes / one.flops,
        memory=costs.bytes / one.hbm_bandwidth,
        interconnect=math.fsum(_seconds(each, chosen, places) for each in costs.collectives),
    )


def _seconds(one: Collective, chosen: Slice, places: Sequence[tuple[int, ...]]) -> float:
    """Along all axes at once that the group extends over; a ring has a way back, a line has not."""
    links = sum(
        chosen.links(axis, len({places[device][axis] for device in one.group}))
        for axis in range(len(chosen.shape))
    )
    sent = one.sent
    if one.kind in ("all-to-all", "ragged-all-to-all"):
        # Each part goes a quarter of the way round on average.
        sent *= len(one.group) / 4
    return sent / (links * chosen.generation.link_bandwidth)
