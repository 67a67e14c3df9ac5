"""A pytest plugin: writes what became of each test, and runs only the tests it is told.

PYTEST_OUTCOMES names the file to write: a JSON list `[test, outcome, why]` a line, as the run goes.
PYTEST_ONLY names a file of tests to run, one a line; without it all run.
"""

import json
import os

import pytest

FINE = ("passed", "skipped")


class Outcomes:
    def __init__(self, path):
        self.file = open(path, "w", encoding="utf-8")
        self.worst = {}

    def pytest_runtest_logreport(self, report):
        """A test has three reports: set-up, the test itself, clean-up. The worst one counts."""
        outcome, why = report.outcome, ""
        if outcome == "skipped" and hasattr(report, "wasxfail"):
            outcome = "xfailed"
        if outcome != "passed":
            why = str(report.longrepr).strip().split("\n")[-1][:300]
        before = self.worst.get(report.nodeid, ("passed", ""))
        if before[0] == "passed" or (before[0] in FINE and outcome == "failed"):
            self.worst[report.nodeid] = (outcome, why)
        if report.when == "teardown":
            self.write(report.nodeid)

    def pytest_collectreport(self, report):
        """A file that can't be read is a test that fails."""
        if report.failed:
            self.worst[report.nodeid] = ("failed", str(report.longrepr).strip().split("\n")[-1][:300])
            self.write(report.nodeid)

    def write(self, test):
        outcome, why = self.worst.pop(test)
        self.file.write(json.dumps([test, outcome, why]) + "\n")
        self.file.flush()


class Only:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.wanted = set(file.read().splitlines())

    # Last, as SQLAlchemy's plugin makes its tests in this hook.
    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        kept = [item for item in items if item.nodeid in self.wanted]
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in self.wanted])
        items[:] = kept


def pytest_configure(config):
    if path := os.environ.get("PYTEST_OUTCOMES"):
        config.pluginmanager.register(Outcomes(path))
    if path := os.environ.get("PYTEST_ONLY"):
        config.pluginmanager.register(Only(path))
