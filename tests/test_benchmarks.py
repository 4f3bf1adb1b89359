"""What benchmarks count; what they time is never asserted."""

import jax

from benchmarks.gcg_ours import later_iteration_flops
from benchmarks.in_turn import measure_in_turn, median_ratio
from robustjax.attacks import gcg
from robustjax.attacks.search import plan, prepare, run_batches
from robustjax.evaluation.evaluate import ExecutedCost
from robustjax.evaluation.flops import executed_flops
from tests.attacks.tiny import ATTACK, CONFIG, INSERT, make_examples, make_victim


def test_encoding_the_prefix_is_not_part_of_a_later_iteration(tiny_tokenizer):
    victim = make_victim(tiny_tokenizer)
    prompts, _ = prepare(victim, make_examples(victim)[:4], INSERT, ATTACK, 0)
    (planned,) = plan(prompts, CONFIG)
    ((_, run, outcome),) = run_batches(victim, [planned], ATTACK, 0, CONFIG)

    later = later_iteration_flops(ATTACK, planned, run, outcome.seen)

    function, arguments = gcg.programs(ATTACK, run.inputs)["encode_prefix"]
    prefix = executed_flops(function, *arguments) / len(run.prompts)
    whole = ExecutedCost(ATTACK)(planned, run, outcome.seen)[0]
    first = ExecutedCost(ATTACK)(planned, run, jax.tree.map(lambda x: x[:1], outcome.seen))[0]
    assert prefix > 0
    assert whole - first == later * (ATTACK.num_iterations - 1)
    assert first - later == prefix


def test_cases_are_measured_in_turn_and_compared_within_rounds():
    order = []

    def case(name, milliseconds):
        def measure():
            order.append(name)
            return {"milliseconds": milliseconds.pop(0)}

        return measure

    # A machine that gets slower fivefold: the ratio is the same in every round.
    cases = {"short": case("short", [1.0, 2.0, 5.0]), "long": case("long", [3.0, 6.0, 15.0])}
    runs = measure_in_turn(cases, rounds=3)

    assert order == ["short", "long"] * 3
    assert median_ratio(runs["long"], runs["short"], "milliseconds") == 3.0
