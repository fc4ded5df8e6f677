"""Counts the cases of the reliability list R1 to R25 that tests run, and prints them as a table."""

from collections import Counter

import pytest

LIST = {
    "R1": "SIGKILL at every evaluation boundary",
    "R2": "SIGKILL at random instants",
    "R3": "killed between every two file operations",
    "R4": "journal cut at every byte of its last two records",
    "R5": "bit flips in journal, plan and frozen tokens",
    "R6": "writes, fsyncs and renames that fail",
    "R7": "two writers, dead locks, file systems without locks",
    "R8": "identity: other weights, tokens, config, dtype, ...",
    "R9": "SIGINT, SIGTERM, SIGHUP, once and twice",
    "R10": "NaN, infinity, errors, no memory at each candidate",
    "R11": "plans and recipes at random",
    "R12": "text that is too short, broken, empty or gone",
    "R13": "windows in which nothing is chosen",
    "R14": "all full is the untouched model",
    "R15": "the switch is transformers' own sharing",
    "R16": "greedy takes the best step",
    "R17": "the same plan each time",
    "R18": "resumed with other batches and process counts",
    "R19": "--json parses under every failure",
    "R20": "a line at least every minute",
    "R21": "files of every schema version",
    "R22": "poor terminals, locales, homes and pipes",
    "R23": "weights on CPU and disk",
    "R24": "exports as engines read them",
    "R25": "memory stays flat",
}


class Cases:
    """The cases of one test; a test that counts none is one case itself."""

    def __init__(self):
        self.passed = 0
        self.failures = []

    def check(self, passed, otherwise):
        """Counts one case; ``otherwise`` says what a failed one showed. The test goes on and fails at its end."""
        if passed:
            self.passed += 1
        else:
            self.failures.append(otherwise)


_RAN, _PASSED = Counter(), Counter()


@pytest.fixture
def cases(request):
    """Counts the cases of a test marked with ``reliability``."""
    return request.node.stash[_CASES]


@pytest.fixture(scope="session")
def full(request):
    """Whether all cases are asked for, by ``--torture``, and not only some of each."""
    return request.config.getoption("torture")


_CASES = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption("--torture", action="store_true", help="run all cases of the reliability list")


def pytest_configure(config):
    config.addinivalue_line("markers", "reliability(name): which of R1 to R25 a test shows")
    config.addinivalue_line("markers", "torture: slow, and run with --torture only")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("torture"):
        slow = [item for item in items if item.get_closest_marker("torture")]
        items[:] = [item for item in items if not item.get_closest_marker("torture")]
        config.hook.pytest_deselected(items=slow)
    for item in items:
        for mark in item.iter_markers("reliability"):
            if unknown := set(mark.args) - set(LIST):
                raise pytest.UsageError(f"{item.nodeid}: no such reliability requirement: {sorted(unknown)}")


def pytest_runtest_setup(item):
    item.stash[_CASES] = Cases()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    result = yield
    cases = pyfuncitem.stash[_CASES]
    if cases.failures:
        shown = "\n".join(cases.failures[:10])
        pytest.fail(f"{len(cases.failures)} of {cases.passed + len(cases.failures)} cases failed:\n{shown}")
    if "cases" in pyfuncitem.fixturenames and not cases.passed:
        pytest.fail("the test counted no case")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    names = sorted({name for mark in item.iter_markers("reliability") for name in mark.args})
    if names and (call.when == "call" or (report.failed and call.when == "setup")) and not report.skipped:
        cases = item.stash[_CASES]
        failed = len(cases.failures) or int(report.failed)
        passed = cases.passed or int(report.passed)
        # The report itself carries the counts: where workers run the tests, nothing else comes back of each.
        report.reliability = {"names": names, "passed": passed, "failed": failed}
    return report


def pytest_runtest_logreport(report):
    """Counts in the process that prints the table, whichever ran the test."""
    counts = getattr(report, "reliability", None)
    for name in counts["names"] if counts else ():
        _RAN[name] += counts["passed"] + counts["failed"]
        _PASSED[name] += counts["passed"]


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("torture"):
        return
    terminalreporter.section("reliability")
    for name, what in LIST.items():
        verdict = "" if _RAN[name] and _RAN[name] == _PASSED[name] else "   <--"
        terminalreporter.write_line(f"{name:4} {what:56} {_RAN[name]:6} run {_PASSED[name]:6} passed{verdict}")
