"""`robustjax plan --local`: what it proposes fits, and nothing larger does."""

import dataclasses
import functools

import jax
import pytest

from robustjax.attacks.beam_search import BeamSearch
from robustjax.attacks.beast import BEAST
from robustjax.attacks.gcg import GCG
from robustjax.attacks.random_token import RandomToken
from robustjax.errors import UserError
from robustjax.models.transformer import Definition
from robustjax.planning import local
from robustjax.planning.local import Case, Need, ProgramMemory, need, propose
from tests.attacks.tiny import make_examples, make_run, make_victim
from tests.models.tiny import CONFIGS

GCG_16 = GCG(num_tokens=4, num_candidates=16, candidate_chunk=16)
ATTACKS = (
    GCG_16,
    RandomToken(num_iterations=16, num_tokens=4, iterations_per_pass=16),
    BeamSearch(num_tokens=4, beam_width=2, num_candidates=16, candidate_chunk=16),
    BEAST(num_iterations=4, beam_width=4, branch_factor=4, candidate_chunk=16),
)
CLASSIFIER = Case(Definition(CONFIGS["neox"]), None, (64, 4, 0))
BY_ATTACK = [(attack, CLASSIFIER) for attack in ATTACKS[:3]] + [
    (ATTACKS[3], CLASSIFIER._replace(companion=Definition(CONFIGS["neox"], head="lm")))
]

COMPILED = functools.cache(need)


@pytest.fixture(autouse=True)
def each_case_is_compiled_once(monkeypatch):
    monkeypatch.setattr(local, "need", COMPILED)
    return COMPILED


@pytest.mark.parametrize(("attack", "case"), BY_ATTACK[1::2], ids=["random_token", "beast"])
def test_the_proposed_batch_fits_and_twice_as_many_do_not(attack, case, each_case_is_compiled_once):
    limit = each_case_is_compiled_once(attack, case, 4).peak
    for budget, rows in ((limit * 1.01, 4), (limit * 0.99, 2)):
        found = propose(attack, case, int(budget), 1_000)
        assert (found.attack, found.need.rows) == (attack, rows)
        assert found.need.peak <= budget < each_case_is_compiled_once(attack, case, 2 * rows).peak


def test_where_the_line_is_not_straight(monkeypatch):
    def bent(attack, case, rows):
        return Need(rows, 100 * rows if rows < 4 else 1000 * rows, {"one": ProgramMemory(0, 0, 0)})

    monkeypatch.setattr(local, "need", bent)
    assert propose(GCG_16, CLASSIFIER, 900, 1_000).need == bent(GCG_16, CLASSIFIER, 2)


def test_examples_beyond_a_full_pass_take_little(monkeypatch):
    def filled(attack, case, rows):
        return Need(rows, 100 * min(rows, 4) + 10 * rows, {"one": ProgramMemory(0, 0, 0)})

    monkeypatch.setattr(local, "need", filled)
    found = propose(GCG_16, CLASSIFIER, 1000, 1_000)
    assert (found.need.rows, found.each) == (32, 10)  # 720 of 1000 bytes; 64 would take 1040


def test_no_more_than_there_are_examples():
    assert propose(ATTACKS[1], CLASSIFIER, 1 << 40, 3).need.rows == 3
    assert propose(ATTACKS[1], CLASSIFIER, 1 << 40, 1).need.rows == 1


@pytest.mark.parametrize(("attack", "case"), BY_ATTACK[1:3], ids=["random_token", "beam_search"])
def test_a_smaller_pass_only_if_one_example_does_not_fit(attack, case, each_case_is_compiled_once):
    whole = each_case_is_compiled_once(attack, case, 1).peak
    assert propose(attack, case, whole, 8).attack == attack
    found = propose(attack, case, whole - 1, 8)
    field = local.pass_field(attack)
    assert (getattr(attack, field), getattr(found.attack, field)) == (16, 8)
    assert dataclasses.replace(found.attack, **{field: 16}) == attack
    assert found.need.peak < whole


def test_a_pass_that_is_left_open_stays_open_if_it_fits(each_case_is_compiled_once):
    attack = dataclasses.replace(ATTACKS[2], candidate_chunk=0)
    assert propose(attack, CLASSIFIER, 1 << 40, 1).attack == attack
    whole = each_case_is_compiled_once(attack, CLASSIFIER, 1).peak
    found = propose(attack, CLASSIFIER, whole - 1, 1).attack
    assert found == dataclasses.replace(attack, candidate_chunk=8)


def test_a_smaller_pass_is_smaller_than_the_open_one(monkeypatch):
    """Not than all candidates: a text of 600 tokens after the slot leaves room for four."""

    def fits_if_small(attack, case, rows):
        peak = 100 if 0 < attack.candidate_chunk <= 8 else 1000
        return Need(rows, peak, {"one": ProgramMemory(0, 0, 0)})

    monkeypatch.setattr(local, "need", fits_if_small)
    attack = dataclasses.replace(ATTACKS[2], candidate_chunk=0)
    found = propose(attack, CLASSIFIER._replace(shape=(64, 600, 0)), 900, 1).attack
    assert found == dataclasses.replace(attack, candidate_chunk=2)


def test_where_nothing_fits():
    attack = dataclasses.replace(ATTACKS[2], candidate_chunk=2)
    with pytest.raises(UserError, match=r"one example alone takes .* \(config\.model\.numerics\)"):
        propose(attack, CLASSIFIER, 1000, 8)


def test_passes_get_smaller_by_divisors():
    sizes, attack = [], BEAST(beam_width=3, branch_factor=5)
    while attack is not None:
        sizes.append(local.pass_size(attack))
        attack = local.with_smaller_pass(attack)
    assert sizes == [45 // 3, 5, 1]


def test_what_is_kept_is_what_a_search_holds(tiny_tokenizer):
    """Weights and caches count once, though every program is given them."""
    attack = RandomToken(num_iterations=16, num_tokens=4, iterations_per_pass=2)
    victim = make_victim(tiny_tokenizer, width=64)
    run = make_run(victim, make_examples(victim)[:4], attack)
    shape = run.batch.before.shape[1], run.batch.after.shape[1], 0
    kept = need(attack, Case(victim.definition, None, shape), 4).kept
    weights, caches, others = (
        sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        for tree in (victim.params, run.prefix, run.batch)
    )
    held = weights + caches + others
    assert held <= kept < held + min(weights, caches)


def test_a_cpu_has_the_free_main_memory(monkeypatch, tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       9000000 kB\nMemAvailable:    1000000 kB\n")
    monkeypatch.setattr(local, "_MEMINFO", meminfo)
    assert local.device_memory()[1:] == (1_024_000_000, 819_200_000)
    monkeypatch.setattr(local, "_MEMINFO", tmp_path / "none")
    with pytest.raises(UserError, match="does not say how much memory is free"):
        local.device_memory()


class Accelerator:
    platform, device_kind = "gpu", "a GPU"

    def __init__(self, stats):
        self.memory_stats = lambda: stats


def test_an_accelerator_has_what_it_says(monkeypatch):
    here = Accelerator({"bytes_limit": 1000, "bytes_in_use": 200})
    monkeypatch.setattr(jax, "local_devices", lambda: [here])
    assert local.device_memory() == ("a GPU", 800, 760)
    here.memory_stats = lambda: None
    with pytest.raises(UserError, match="a GPU does not say how much memory it has"):
        local.device_memory()
