"""Epochs over labelled texts: whose loss is whose, what is logged and saved, and when it stops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.data.batching import FILLER
from robustjax.data.prompts import Example
from robustjax.errors import UserError
from robustjax.runtime import interrupts
from robustjax.runtime.checkpoint import Checkpoints
from robustjax.training.loop import (
    DivergedError,
    LabelledRows,
    TrainConfig,
    Trainer,
    naming_last_good,
    start,
)
from robustjax.training.optimizer import OptimizerConfig
from robustjax.training.step import StepReport, TrainState

LENGTHS = [5, 40, 9, 33, 64, 7, 12, 50, 8, 20, 6, 30, 31]  # two buckets, of width 32 and 64
NAMES = [f"example {i}" for i in range(len(LENGTHS))]
CONFIG = TrainConfig(batch_size=4, microbatch_size=2, optimizer=OptimizerConfig(learning_rate=1e-2))


@pytest.fixture
def trainer(make_victim):
    """Thirteen rows; the label of each is its place, so that a fake step can tell whose it saw."""
    return Trainer(make_victim(), CONFIG, labelled(), seed=3)


def labelled(free=None):
    rows = [[i + 1] * n for i, n in enumerate(LENGTHS)]
    return LabelledRows(rows, range(len(LENGTHS)), 0, NAMES, free)


def constant_rate(index):
    return 1e-2


def fresh():
    """No weights; the fake steps count themselves where an optimizer would keep its state."""
    return TrainState({}, 0)


def tell_labels(state, batch, rate):
    """A step that trains nothing and gives each row's label as its loss."""
    state = state._replace(opt_state=state.opt_state + 1)
    return state, StepReport(jnp.asarray(batch.label, jnp.float32), jnp.float32(state.opt_state))


def examples(texts):
    return [
        Example(i, "", (text,), "", i % 2, 1 - i % 2, " yes", " no") for i, text in enumerate(texts)
    ]


class Log:
    def __init__(self):
        self.lines, self.seen, self.saved, self.losses = [], [], [], None

    def __call__(self, seen):
        self.lines.append((seen.number, seen.loss))
        self.seen.append(seen)

    def save(self, number, state, losses):
        # What is saved stands for all steps up to it; their lines must be on disk by then.
        assert [line[0] for line in self.lines][-1] == number
        self.saved.append((number, state.opt_state))
        self.losses = losses.copy()


def run_epoch(trainer, step, state, epoch=0, log=None, rate=constant_rate, **options):
    log = log or Log()
    return trainer.run_epoch(step, state, epoch, log, rate, log.save, **options)


def test_each_loss_lands_at_its_text_and_fillers_nowhere(trainer):
    log = Log()
    assert trainer.steps_per_epoch == 4  # 9 rows of width 32 and 4 of width 64 in batches of 4
    state, losses = run_epoch(trainer, tell_labels, fresh(), 0, log, constant_rate)
    assert state.opt_state == 4
    np.testing.assert_array_equal(losses, np.arange(len(LENGTHS)))
    assert [number for number, _ in log.lines] == [1, 2, 3, 4]
    # A line is the mean over a batch's real rows.
    rows = [batch.indices[batch.indices != FILLER] for batch in trainer._batches(0)]
    assert [loss for _, loss in log.lines] == pytest.approx([r.mean() for r in rows])


def test_a_language_model_s_line_is_the_mean_over_predicted_tokens(make_victim):
    trainer = Trainer(make_victim(head="lm"), CONFIG, labelled(), seed=3)
    log = Log()
    _, losses = run_epoch(trainer, tell_labels, fresh(), 0, log, constant_rate)
    np.testing.assert_array_equal(losses, np.arange(len(LENGTHS)))
    rows = [batch.indices[batch.indices != FILLER] for batch in trainer._batches(0)]
    tokens = np.array(LENGTHS) - 1
    expected = [np.average(r, weights=tokens[r]) for r in rows]
    assert [loss for _, loss in log.lines] == pytest.approx(expected)
    params = trainer._victim.num_params  # compute is counted as a classifier's is
    assert trainer.algorithmic_flops([0]) == 6 * params * sum(LENGTHS)


def test_texts_of_one_token_teach_a_language_model_nothing(make_victim):
    victim = make_victim(head="lm")
    some = Trainer(victim, CONFIG, LabelledRows([[5], [6], [7, 8]], [0, 0, 0], 0, "abc"), seed=0)
    step, state = start(victim, CONFIG)
    log = Log()
    _, losses = run_epoch(some, step, state, 0, log, constant_rate)
    assert losses[0] == losses[1] == 0 < losses[2]
    assert log.lines == [(1, pytest.approx(losses[2]))]
    with pytest.raises(UserError, match="a text of at least two tokens, but none of 2 has"):
        Trainer(victim, CONFIG, LabelledRows([[5], [6]], [0, 0], 0, "ab"), seed=0)


def test_each_step_gets_its_own_learning_rate(trainer):
    rates = []

    def note(state, batch, rate):
        rates.append(float(rate))
        return tell_labels(state, batch, rate)

    run_epoch(trainer, note, fresh(), 0, Log(), lambda index: 0.5 + index, first=1)
    assert rates == [1.5, 2.5, 3.5]


def test_rows_of_a_batch_belong_together(trainer):
    def check(state, batch, rate):
        for tokens, mask, label, weight in zip(
            *(np.asarray(x).reshape(4, *x.shape[2:]) for x in batch[:4]), strict=True
        ):
            if weight:
                assert tokens[mask].tolist() == [label + 1] * LENGTHS[label]
        assert batch.tokens.shape in ((2, 2, 32), (2, 2, 64)) and batch.free is None
        return tell_labels(state, batch, rate)

    run_epoch(trainer, check, fresh(), 0, Log(), constant_rate)


def test_epochs_differ_and_can_be_replayed(trainer):
    def order(epoch):
        seen = []

        def note(state, batch, rate):
            seen.append(np.asarray(batch.label).ravel().tolist())
            return tell_labels(state, batch, rate)

        run_epoch(trainer, note, fresh(), epoch, Log(), constant_rate)
        return seen

    assert order(1) == order(1) != order(2)


def test_an_epoch_is_entered_in_the_middle(trainer):
    log = Log()
    state, losses = run_epoch(trainer, tell_labels, fresh(), 0, log, constant_rate, first=2)
    assert state.opt_state == 2 and [number for number, _ in log.lines] == [3, 4]
    done = ~np.isnan(losses)
    assert 0 < done.sum() < len(LENGTHS)
    np.testing.assert_array_equal(losses[done], np.arange(len(LENGTHS))[done])


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3]), (2, [2]), (3, [3]), (0, [])])
def test_saves_come_after_their_lines_and_never_at_the_end(trainer, every, expected):
    log = Log()
    run_epoch(trainer, tell_labels, fresh(), 0, log, constant_rate, save_every=every)
    assert log.saved == [(number, number) for number in expected]


def test_an_epoch_ends_with_the_losses_it_was_entered_with(trainer):
    log = Log()
    _, whole = run_epoch(trainer, tell_labels, fresh(), 0, log, save_every=2)
    assert np.isnan(log.losses).any()  # those of the batches to come
    _, rest = run_epoch(trainer, tell_labels, fresh(), first=2, losses=log.losses)
    np.testing.assert_array_equal(rest, whole)


def test_compute_is_counted_up_to_each_step(trainer):
    log = Log()
    run_epoch(trainer, tell_labels, fresh(), 1, log)
    batches = [batch.indices[batch.indices != FILLER] for batch in trainer._batches(1)]
    tokens = np.cumsum([np.array(LENGTHS)[rows].sum() for rows in batches])
    expected = (6 * trainer._victim.num_params * tokens).tolist()
    assert [seen.flops for seen in log.seen] == expected
    assert expected[-1] == trainer.algorithmic_flops([0])
    resumed = Log()
    run_epoch(trainer, tell_labels, fresh(), 1, resumed, first=2)
    assert [seen.flops for seen in resumed.seen] == expected[2:]
    assert log.seen[0].figures(7) == {
        "loss": log.seen[0].loss,
        "learning_rate": 1e-2,
        "gradient_norm": 1.0,
        "flops": 7 + expected[0],
    }


def diverging(bad_loss=None, bad_norm=None):
    """A step whose third loss or gradient is bad."""

    def step(state, batch, rate):
        state, report = tell_labels(state, batch, rate)
        if state.opt_state == 3:
            losses = report.losses if bad_loss is None else jnp.full_like(report.losses, bad_loss)
            norm = report.gradient_norm if bad_norm is None else jnp.float32(bad_norm)
            report = StepReport(losses, norm)
        return state, report

    return step


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("field", "what"), [("bad_loss", "loss"), ("bad_norm", "gradient")])
def test_what_is_not_finite_stops_and_names_the_step_and_the_examples(trainer, bad, field, what):
    log = Log()
    (names,) = [
        ", ".join(NAMES[i] for i in batch.indices if i != FILLER)
        for number, batch in enumerate(trainer._batches(5), 1)
        if number == 3
    ]
    expected = rf"step 3 of epoch 6: the {what} is not finite \(examples {names}\); lower the learn"
    with pytest.raises(DivergedError, match=expected) as error:
        run_epoch(trainer, diverging(**{field: bad}), fresh(), 5, log, save_every=1)
    assert isinstance(error.value, UserError)  # one line on the command line, not a traceback
    assert [number for number, _ in log.lines] == [1, 2] and [n for n, _ in log.saved] == [1, 2]


@pytest.mark.parametrize("saved", [0, 2])
def test_a_divergence_names_the_last_good_checkpoint(trainer, tmp_path, saved):
    with Checkpoints(tmp_path) as checkpoints:
        if saved:
            checkpoints.save(saved, {"x": np.zeros(1)}, {})
        good = f"the last good checkpoint is {tmp_path}/00000002" if saved else "no checkpoint from"
        with pytest.raises(DivergedError, match=good), naming_last_good(checkpoints):
            run_epoch(trainer, diverging(np.nan), fresh())


@pytest.mark.parametrize("at", [1, 3, 4])
def test_preempted_it_finishes_the_step_and_saves(trainer, monkeypatch, at):
    """Unless the epoch is over with that step: then its end is what is saved."""
    log = Log()
    monkeypatch.setattr(interrupts, "is_preempted", lambda: steps == at)
    steps = 0

    def step(state, batch, rate):
        nonlocal steps
        steps += 1
        return tell_labels(state, batch, rate)

    if at == trainer.steps_per_epoch:
        run_epoch(trainer, step, fresh(), 0, log)
        assert log.saved == []
    else:
        with pytest.raises(interrupts.PreemptedError):
            run_epoch(trainer, step, fresh(), 0, log)
        assert log.saved == [(at, at)] and steps == at


def test_tokens_are_free_where_their_row_says(make_victim):
    free = [range(i % 3, min(LENGTHS[i], 2 * i)) for i in range(len(LENGTHS))]
    trainer = Trainer(make_victim(), CONFIG, labelled(free), seed=3)
    seen = {}

    def note(state, batch, rate):
        rows = zip(batch.label.ravel(), batch.weight.ravel(), strict=True)
        for (label, weight), mask in zip(rows, batch.free.reshape(4, -1), strict=True):
            if weight:
                seen[int(label)] = np.flatnonzero(mask).tolist()
            else:
                assert not mask.any()
        return tell_labels(state, batch, rate)

    run_epoch(trainer, note, fresh())
    assert seen == {i: list(one) for i, one in enumerate(free)}


def test_a_filler_row_may_hold_anything(trainer):
    def step(state, batch, rate):
        state, report = tell_labels(state, batch, rate)
        losses = jnp.where(batch.weight == 0, jnp.nan, report.losses)
        return state, report._replace(losses=losses)

    _, losses = run_epoch(trainer, step, fresh(), 0, Log(), constant_rate)
    assert np.isfinite(losses).all()


def test_real_losses_are_those_before_the_update_and_fall(make_victim):
    victim = make_victim()
    texts = [f"the word number {i} is {'long' if i % 2 else 'short'}" for i in range(8)]
    data = LabelledRows.of_examples(victim, examples(texts))
    config = TrainConfig(8, 8, 8, OptimizerConfig(learning_rate=1e-2))
    trainer = Trainer(victim, config, data, seed=0)
    assert trainer.steps_per_epoch == 1
    step, state = start(victim, config)
    logits = victim.logits(texts)
    expected = np.logaddexp(*logits.T) - logits[np.arange(8), data.labels]
    means = []
    for epoch in range(8):
        state, losses = run_epoch(trainer, step, state, epoch, Log(), constant_rate)
        means.append(losses.mean())
        if epoch == 0:
            np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert means[-1] < 0.5 * means[0]


def test_a_training_like_one_before_takes_its_step(make_victim):
    """Whatever the weights and the learning rate of each step; another optimizer has another."""
    victim = make_victim()
    again = victim.with_params(jax.tree.map(jnp.copy, victim.params))
    step, _ = start(victim, CONFIG)
    assert start(again, CONFIG)[0] is step
    for other in (dict(beta1=0.5, name="adamw"), dict(name="adamw"), dict(weight_decay=0.1)):
        optimizer = dataclasses.replace(CONFIG.optimizer, **other)
        assert start(victim, dataclasses.replace(CONFIG, optimizer=optimizer))[0] is not step
    assert start(make_victim(head="lm"), CONFIG)[0] is not step


def test_compute_is_counted_by_epoch(trainer):
    params = trainer._victim.num_params
    assert trainer.algorithmic_flops([0]) == 6 * params * sum(LENGTHS)
    # Padding to the bucket and filler rows are executed too; embeddings cost no dot products.
    assert trainer.executed_flops() > 0


def test_padding_counts_as_far_as_the_longest_of_a_microbatch(make_victim):
    config = dataclasses.replace(CONFIG, count_padding=True)
    trainer = Trainer(make_victim(), config, labelled(), seed=3)
    params, size = trainer._victim.num_params, config.microbatch_size
    for epoch in (0, 1):
        tokens = 0
        for batch in trainer._batches(epoch):
            for part in np.split(batch.indices, config.batch_size // size):
                real = [LENGTHS[i] for i in part if i != FILLER]
                tokens += len(real) * max(real, default=0)
        assert trainer.algorithmic_flops([epoch]) == 6 * params * tokens > 6 * params * sum(LENGTHS)
    both = trainer.algorithmic_flops([0]) + trainer.algorithmic_flops([1])
    assert trainer.algorithmic_flops(range(2)) == both


def test_a_text_longer_than_the_context_is_refused(make_victim):
    with pytest.raises(UserError, match="text 1 has .* tokens; .* context of 128"):
        LabelledRows.of_examples(make_victim(), examples(["short", "long " * 300]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 8, "microbatch_size": 3}, "microbatch_size=3 does not divide batch_size=8"),
        ({"edges": ()}, r"edges=\(\)"),
        ({"edges": (64, 32)}, r"edges=\(64, 32\)"),
        ({"edges": (0, 32)}, r"edges=\(0, 32\)"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**fields)
