"""Plans whose figures are made up."""

from robustjax.attacks.frame import Program
from robustjax.planning.ahead_of_time import Compiled
from robustjax.planning.chips import Slice
from robustjax.planning.hlo_costs import Collective, Costs
from robustjax.planning.roofline import Bound
from robustjax.planning.run_plan import Planned, RunPlan
from robustjax.planning.work import Work


def compiled(peak: int, seconds: float) -> Compiled:
    """A program of so many bytes that takes so long."""
    exchanged = Collective("all-reduce", 1000, (0, 1), 3, "f32[250]", True)
    return Compiled(
        arguments=peak,
        temporaries=0,
        results=0,
        code=0,
        costs=Costs({1: 2e12, 6: 1e12}, 3e9, (exchanged,)),
        bound=Bound(compute=seconds, memory=seconds / 2, interconnect=seconds / 4),
        seconds_compile=1.25,
        results_layout=None,
        text="",
    )


def plan_of(chosen: Slice, peak: int, seconds: float, runs: int = 1, beside: int = 0) -> RunPlan:
    """A plan of one program."""
    work = Work("only", Program(len, ()), runs, beside=beside)
    sizes = {"data": chosen.chips, "fsdp": 1, "tensor": 1}
    return RunPlan(chosen, sizes, [Planned(work, compiled(peak, seconds))])
