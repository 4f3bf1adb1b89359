"""Turns every skipped or expected-to-fail test into a failure.

A test that does not run proves nothing, and nobody reads a skip in a log. The reports themselves
are changed, so this also holds in the worker processes of pytest-xdist.
"""

from typing import Any

import pytest


def _fail(report: Any, why: str) -> None:
    report.outcome = "failed"
    report.longrepr = f"{why}. Tests run here, or they are not written."


def _reason(report: Any) -> str:
    is_located = isinstance(report.longrepr, tuple)  # (path, line, reason)
    return str(report.longrepr[2] if is_located else report.longrepr).strip()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if hasattr(report, "wasxfail"):
        _fail(report, f"marked as an expected failure ({report.wasxfail})")
        del report.wasxfail
    elif report.skipped:
        _fail(report, _reason(report))
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(collector: pytest.Collector):
    report = yield
    if report.skipped:
        _fail(report, _reason(report))
    return report
