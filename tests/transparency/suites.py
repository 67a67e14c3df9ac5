"""Runs a driver's own tests with pytest against a server, and compares what passes there with what passes elsewhere.

Where the worlds differ, `explained/SUITE.txt` must say why, a line each: `TEST | reason`. A test named there without
its `[parameters]` stands for all of them. What is listed and does not differ is told.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from harness import DATABASE, PASSWORD, ROLE, Postgres, Proxy, unwind_when_killed  # noqa: E402

FOLDER = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "driver-suites"
VENV_PYTHON = pathlib.Path(os.environ.get("DRIVER_SUITES_PYTHON", ROOT / ".venv/bin/python"))
RUN_DEADLINE_S = 1200
LAST_WORDS = 4000
# Outcomes that are no fault of anybody's.
FINE = ("passed", "skipped", "xfailed")


@dataclasses.dataclass
class Suite:
    """One driver's tests: where they are, how they are started.

    Words in braces (host, port, role, password, database, url) stand for those of the server.
    """
    name: str
    paths: list
    arguments: list = dataclasses.field(default_factory=list)
    source: str = ""
    unpack: str = ""
    prepare: list = dataclasses.field(default_factory=list)
    own_environment: dict = dataclasses.field(default_factory=dict)
    pool: dict = dataclasses.field(default_factory=dict)

    def places(self, server):
        return {"host": server.host, "port": server.port, "role": ROLE, "password": PASSWORD, "database": DATABASE,
                "url": server.url().removeprefix("postgresql://")}

    def environment(self, server):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        own = {"LC_ALL": "C.UTF-8", **self.own_environment}
        return inherited | {name: value.format(**self.places(server)) for name, value in own.items()}

    def command(self, server, cache, paths):
        arguments = [argument.format(**self.places(server)) for argument in self.arguments]
        return [str(VENV_PYTHON), "-s", "-m", "pytest", "-q", "-p", "pytest_outcomes", "-o", f"cache_dir={cache}",
                "--rootdir=.", "--tb=short", *arguments, *paths]


def explained(name):
    """The list of differences that a transaction pooler can't avoid: test → reason."""
    path = HERE / "explained" / f"{name}.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = (line.split(" | ", 1) for line in lines if line.strip() and not line.startswith("#"))
    return {test.strip(): reason.strip() for test, reason in pairs}


def reason_for(reasons, test):
    return reasons.get(test) or reasons.get(test.split("[")[0])


@contextlib.contextmanager
def world(suite, through_proxy):
    """A throwaway PostgreSQL, and a proxy before it if asked for; yields the server that clients connect to."""
    with Postgres(max_prepared_transactions=10) as postgres:
        for statement in suite.prepare:
            postgres.sql(statement)
        if not through_proxy:
            yield postgres
            return
        secrets = [{"username": ROLE, "password": PASSWORD, "host": postgres.host, "port": postgres.port}]
        with Proxy(postgres, secrets=secrets, pool=suite.pool) as proxy:
            try:
                yield proxy
            finally:
                (FOLDER / suite.name / "proxy-server.log").write_text(proxy.log())


def run(suite, server, tests_in, label, only=None):
    """Runs the suite, or some of its tests, against a server; returns test → (outcome, why)."""
    folder = FOLDER / suite.name
    folder.mkdir(parents=True, exist_ok=True)
    report, log = folder / f"{label}.jsonl", folder / f"{label}.log"
    report.unlink(missing_ok=True)
    # What pytest remembers of an earlier run is nothing to this one.
    cache = folder / f"{label}.cache"
    shutil.rmtree(cache, ignore_errors=True)
    environment = suite.environment(server) | {"PYTEST_OUTCOMES": str(report), "PYTHONPATH": str(HERE)}
    if only is not None:
        chosen = folder / f"{label}.only"
        chosen.write_text("".join(f"{test}\n" for test in sorted(only)), encoding="utf-8")
        environment["PYTEST_ONLY"] = str(chosen)
    paths = suite.paths if only is None else sorted({file_of(test) for test in only})
    started = time.monotonic()
    with open(log, "wb") as output:
        process = subprocess.Popen(suite.command(server, cache, paths), cwd=tests_in, stdin=subprocess.DEVNULL,
                                   env=environment, stdout=output, stderr=output)
        try:
            process.wait(RUN_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise SystemExit(f"the {label} run is not over after {RUN_DEADLINE_S} s: {log}") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    # pytest's own words: 0 all pass, 1 some fail. Anything else is a run that did not get through.
    if process.returncode not in (0, 1) or not report.exists():
        raise SystemExit(f"the {label} run broke:\n{log.read_text(errors='replace')[-LAST_WORDS:]}")
    lines = (json.loads(line) for line in report.read_text(encoding="utf-8").splitlines())
    found = {test: (outcome, why) for test, outcome, why in lines}
    passed = sum(outcome == "passed" for outcome, _ in found.values())
    print(f"   {label}: {passed} of {len(found)} pass, {time.monotonic() - started:.0f} s", flush=True)
    return found


def run_both(suite, tests_in, all_directly):
    """Runs the suite through the proxy, and directly: all of it, or what does not pass through the proxy.

    Returns the outcomes of both. What passes only directly, without a reason, may try once more through the same proxy
    with all of its file: what earlier tests have left there meets it again, bad luck with time does not.
    """
    reasons = explained(suite.name)
    with world(suite, through_proxy=True) as server:
        proxied = run(suite, server, tests_in, "proxy")
        fine = {test for test, (outcome, _) in proxied.items() if outcome == "passed" or reason_for(reasons, test)}
        with world(suite, through_proxy=False) as postgres:
            direct = run(suite, postgres, tests_in, "direct", only=None if all_directly else set(proxied) - fine)
        if not all_directly:
            direct |= {test: ("passed", "") for test in fine}
        lost = {test for test in set(proxied) - fine if direct.get(test, ("missing",))[0] == "passed"}
        if lost:
            files = {file_of(test) for test in lost}
            beside = {test for test in proxied if file_of(test) in files}
            again = run(suite, server, tests_in, "proxy-again", only=beside)
            for test in sorted(lost & set(again)):
                if again[test][0] == "passed":
                    print(f"   passes the second time: {test}: {proxied[test][1]}", flush=True)
                proxied[test] = again[test]
    return direct, proxied


def file_of(test):
    return test.split("::")[0]


def compare(suite, direct, proxied):
    """Prints every test that passes directly only; returns how many pass in both worlds, and how many lack a reason."""
    reasons = explained(suite.name)
    used, same, unexplained = set(), 0, 0
    for test, (outcome, _) in sorted(direct.items()):
        if outcome != "passed":
            continue
        through, why = proxied.get(test, ("missing", "the test did not run"))
        reason = reason_for(reasons, test)
        if through == "passed":
            same += 1
        elif reason:
            used |= {test, test.split("[")[0]}
            print(f"   explained: {test}: {reason}", flush=True)
        else:
            unexplained += 1
            print(f"FAILED {suite.name}: {test}: {through}: {why}", flush=True)
    for test in sorted(set(reasons) - used):
        print(f"   listed, but does not differ: {test}", flush=True)
    return same, unexplained
