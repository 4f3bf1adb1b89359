"""Compiles programs for a TPU slice that nobody has to have: memory, costs and the time bound.

libtpu holds TPUs' compiler and runs on any x86 Linux machine. It wants a process of its own with
`environment.for_tpu_compiler` called before jax is imported; all that is run there runs on the CPU.
"""

import contextlib
import dataclasses
import importlib.util
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from robustjax.attacks.frame import Program
from robustjax.errors import UserError
from robustjax.planning import roofline
from robustjax.planning.chips import Slice
from robustjax.planning.environment import ENVIRONMENT, is_for_tpu_compiler
from robustjax.planning.hlo_costs import Costs, costs_of
from robustjax.planning.hlo_text import parse
from robustjax.planning.roofline import Bound
from robustjax.runtime.mesh import MeshConfig, make_mesh

_QUICKLY: Any = {"exec_time_optimization_effort": -1.0}
"""A tenth of the time of compilation; what it leaves out would make programs faster, and none of
memory, products and collectives larger."""
HBM_SHARE = 0.9
"""Share of a device's memory that a plan may take; the rest is for what the runtime itself keeps,
and for buffers that do not lie gap to gap."""


class TooLargeError(UserError):
    """A program that does not fit the memory of a device."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program compiled for a slice; bytes and FLOPs are one device's.

    Attributes:
        arguments: bytes of what it is given.
        temporaries: bytes that it works with.
        results: bytes that it returns and that were not given to it.
        code: bytes of the program itself, which stands in the same memory.
        costs: of one run.
        bound: the least time of one run.
        seconds_compile: what compiling took here.
        results_layout: shardings of what it returns.
        text: the program.
    """

    arguments: int
    temporaries: int
    results: int
    code: int
    costs: Costs
    bound: Bound
    seconds_compile: float
    results_layout: Any
    text: str = dataclasses.field(repr=False)

    @property
    def peak(self) -> int:
        """Bytes that there must be room for while it runs."""
        return self.arguments + self.temporaries + self.results + self.code


def check_compiler() -> None:
    """Raises UserError where TPUs' compiler is missing, or jax was not told to leave TPUs alone."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "--topology compiles with libtpu, which is not installed: pip install 'robustjax[tpu]'"
        )
    if not is_for_tpu_compiler():
        raise UserError(
            "compiling for TPUs wants a process of its own, as robustjax plan is one, started with "
            + " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
        )


def mesh_of(config: MeshConfig, chosen: Slice) -> Mesh:
    """The mesh that a run on this slice would have, of devices that only exist for the compiler.

    Raises:
        UserError: the compiler does not know the slice, or the mesh does not fit it.
    """
    options: dict[str, Any] = {"chips_per_host_bounds": (*chosen.host_chips, 1, 1)[:3]}
    if chosen.generation.chip_config:
        options["chip_config_name"] = chosen.generation.chip_config
    try:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=chosen.name, **options
        )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"topology {chosen.name}: {str(error).splitlines()[0]}") from error
    if len(topology.devices) != chosen.chips:
        raise UserError(
            f"topology {chosen.name}: the compiler shows {len(topology.devices)} devices for its "
            f"{chosen.chips} chips; take the version of libtpu that goes with this jax"
        )
    try:
        mesh = make_mesh(config, topology.devices)
    except NotImplementedError as error:  # JAX: axes of the mesh are no products of the torus's
        raise UserError(
            f"config.mesh: {config.sizes} is not made of whole axes of {chosen.name}, which only "
            "v5e can do without; choose sizes that are products of its axes"
        ) from error
    if mesh.size != chosen.chips:
        raise UserError(
            f"config.mesh takes {mesh.size} of the {chosen.chips} devices of {chosen.name}; set "
            "one of its axes to -1, or take a smaller slice"
        )
    return mesh


def places_of(mesh: Mesh) -> list[tuple[int, ...]]:
    """Where in the torus each device of a mesh stands, in the order of the mesh."""
    return [tuple(device.coords) for device in mesh.devices.flat]


def compile_for(program: Program, mesh: Mesh, chosen: Slice) -> Compiled:
    """Compiles a program whose arguments are laid out on the mesh.

    Raises:
        TooLargeError: it does not fit the memory.
    """
    # A jitted function brings its own layouts and donations; another one gets none.
    lower = getattr(program.function, "lower", None) or jax.jit(program.function).lower
    lowered = lower(*program.arguments)
    started = time.perf_counter()
    try:
        with _kept_nowhere():
            compiled: Any = lowered.compile(compiler_options=_QUICKLY)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLargeError(
            f"a device of {chosen.name} has too little memory: {_first_sentence(error)}; take more "
            "chips, split weights further (config.mesh), or lower batch and chunk"
        ) from error
    seconds = time.perf_counter() - started
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None and memory is not None  # libtpu has both
    costs = costs_of(parse(text), mesh.size)
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        costs=costs,
        bound=roofline.bound(costs, chosen, places_of(mesh)),
        seconds_compile=seconds,
        results_layout=compiled.output_shardings,
        text=text,
    )


@contextlib.contextmanager
def _kept_nowhere() -> Iterator[None]:
    """Keeps what is compiled out of the cache on the disk: without a TPU nothing can read it."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _first_sentence(error: Exception) -> str:
    return str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ").strip(" .")
