from pathlib import Path

import pytest

import tests.no_skips


@pytest.fixture
def strict_pytester(pytester):
    pytester.makeconftest(Path(tests.no_skips.__file__).read_text())
    return pytester


def test_every_way_of_not_running_fails_and_other_tests_are_left_alone(strict_pytester):
    strict_pytester.makepyfile(
        """
        import pytest
        def test_skip(): pytest.skip('no time')
        @pytest.mark.skip(reason='no patience')
        def test_mark(): pass
        @pytest.mark.xfail(reason='no courage')
        def test_xfail(): assert False
        @pytest.mark.xfail(reason='no belief')
        def test_xpass(): pass
        def test_good(): pass
        def test_bad(): assert 1 == 2
        """
    )

    result = strict_pytester.runpytest_inprocess("-p", "no:cacheprovider")

    assert result.parseoutcomes() == {"passed": 1, "failed": 4, "errors": 1}
    for reason in ("no time", "no patience", "no courage", "no belief", "assert 1 == 2"):
        result.stdout.fnmatch_lines([f"*{reason}*"])


def test_worker_processes_and_skipped_modules_fail_too(strict_pytester):
    strict_pytester.makepyfile(
        test_one="import pytest\npytest.skip('no time', allow_module_level=True)",
        test_two="def test_it(): pass",
    )

    result = strict_pytester.runpytest_subprocess("-n1", "-p", "no:cacheprovider")

    outcomes = result.parseoutcomes()
    assert outcomes["errors"] == 1 and "skipped" not in outcomes
    assert result.ret != pytest.ExitCode.OK
