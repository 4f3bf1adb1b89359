"""Attacks that are interrupted after a step."""

import pytest

from robustjax.attacks import search
from robustjax.evaluation import evaluate


class Interrupted:
    """Runs an attack until a number of steps is done and saved; counts the steps of all runs."""

    def __init__(self, monkeypatch, attack):
        self.left, self.before, self.steps = None, 0, []
        module, ticker = search.module_of(attack), evaluate._Ticker
        step, tick = module.step, ticker.__call__

        def counted(attack, run, state, iteration):
            self.steps.append((run.prompts[0].example.example_id, iteration))
            return step(attack, run, state, iteration)

        def one_less(ticker, batch, iterations):
            tick(ticker, batch, iterations)
            if self.left is not None and len(self.steps) > self.before:
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt

        monkeypatch.setattr(module, "step", counted)
        monkeypatch.setattr(ticker, "__call__", one_less)

    def after(self, count, go):
        self.left, self.before = count, len(self.steps)
        with pytest.raises(KeyboardInterrupt):
            go()
        self.left = None
