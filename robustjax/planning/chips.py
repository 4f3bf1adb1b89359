"""What TPU chips can do at best, by generation, and the slices of them that one can have.

Peak figures are those that Google publishes: docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and
/v6e, read in November 2026. Two are not there: the interconnect of v4 (six links of 50 GB/s each
way) is from Jouppi et al. 2023 (arXiv 2304.01433, table 4), and that a float32 product takes six
passes of bfloat16 at the highest precision, and three at a high one, is from the documentation of
`jax.lax.Precision`.
"""

import dataclasses
import math
import re

from robustjax.errors import UserError

GB = 1e9
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Generation:
    """The peak figures of one generation, for a chip.

    Attributes:
        name: as in the name of a topology.
        flops: bfloat16 FLOPs a second.
        hbm_bytes: memory.
        hbm_bandwidth: bytes a second between memory and chip.
        link_bandwidth: bytes a second over one link to a neighbour, each way.
        dimensions: of the torus; a chip has two links in each.
        closes_at: multiples of this many chips along an axis close to a ring; others are a line.
        chip_config: what makes the compiler take a chip of two cores for one device, as TPU VMs do;
            empty where it does so anyway. Every device is a chip then.
        host_chips: chips of a host, as they stand in the torus.
        largest: chips of the largest slice.
    """

    name: str
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    dimensions: int
    closes_at: int
    chip_config: str
    host_chips: tuple[int, ...]
    largest: int


# Memory in GiB: the documentation writes "16 GB" (v5e), "32 GiB" (v4), "95 GiB" (v5p) and "32 GB"
# (v6e) for what are powers of two but for v5p.
GENERATIONS = {
    one.name: one
    for one in (
        Generation("v4", 275e12, 32 * GIB, 1200 * GB, 50 * GB, 3, 4, "megacore", (2, 2, 1), 4096),
        Generation("v5e", 197e12, 16 * GIB, 819 * GB, 50 * GB, 2, 16, "", (2, 2), 256),
        Generation("v5p", 459e12, 95 * GIB, 2765 * GB, 100 * GB, 3, 4, "", (2, 2, 1), 6144),
        Generation("v6e", 918e12, 32 * GIB, 1640 * GB, 100 * GB, 2, 16, "", (2, 2), 256),
    )
}

PASSES = {"default": 1, "high": 3, "highest": 6}
"""Passes of bfloat16 that a product of float32 factors takes, by its precision."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips of one generation that are connected with one another.

    Attributes:
        generation: of the chips.
        shape: chips along each axis of the torus.
    """

    generation: Generation
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As it is written: `v5e:4x4`."""
        return f"{self.generation.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """How many; each is one device of a mesh."""
        return math.prod(self.shape)

    @property
    def host_chips(self) -> tuple[int, ...]:
        """Chips of each host along each axis; a slice may be smaller than a host."""
        pairs = zip(self.shape, self.generation.host_chips, strict=True)
        return tuple(min(there, most) for there, most in pairs)

    def links(self, axis: int, extent: int) -> int:
        """Over how many links chips exchange data along an axis; both ways round if it is a ring.

        Args:
            axis: of the torus.
            extent: how many chips of the axis take part.
        """
        size = self.shape[axis]
        is_ring = extent == size and size % self.generation.closes_at == 0
        return 0 if extent == 1 else 2 if is_ring else 1


def parse_slice(name: str) -> Slice:
    """The slice of a name such as `v5e:4x4` or `v5p:2x2x1`.

    Raises:
        UserError: it names no slice; the message says what would.
    """
    found = re.fullmatch(r"(v\d+[a-z]?):(\d+(?:x\d+)*)", name)
    generation = GENERATIONS.get(found[1]) if found else None
    if found is None or generation is None:
        raise UserError(
            f"topology {name!r} is no TPU slice; write a generation ({', '.join(GENERATIONS)}) and "
            "the chips along each axis, as in v5e:4x4 or v4:2x2x1"
        )
    shape = tuple(map(int, found[2].split("x")))
    if len(shape) != generation.dimensions or 0 in shape:
        raise UserError(
            f"topology {name!r}: chips of {generation.name} stand in {generation.dimensions} "
            f"dimensions; write {generation.dimensions} numbers of at least 1"
        )
    chosen = Slice(generation, shape)
    if chosen.chips > generation.largest:
        raise UserError(
            f"topology {name!r} has {chosen.chips} chips; a slice of {generation.name} has at most "
            f"{generation.largest}"
        )
    partial = any(
        size % most for size, most in zip(shape, generation.host_chips, strict=True) if size > most
    )
    if partial or (chosen.chips > math.prod(generation.host_chips) and 1 in shape[:2]):
        raise UserError(
            f"topology {name!r} is no multiple of a host's "
            f"{'x'.join(map(str, generation.host_chips))} chips; round it"
        )
    return chosen
