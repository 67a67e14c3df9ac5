#!/usr/bin/env python3
"""PostgreSQL's own regression tests, run by pg_regress directly and through one proxy in transaction mode.

    tests/transparency/regress.py              all of it: a line a test, then the totals
    tests/transparency/regress.py --keep DIR   and leaves results and logs of both runs in DIR

Every test that passes directly must pass through the proxy. Where one can't, `differences/TEST.diff` says why and
what exactly may be different; any other difference fails. Each run has a database server of its own.
"""

import argparse
import difflib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DIFFERENCES = HERE / "differences"
sys.path.insert(0, str(HERE.parent))

from harness import PASSWORD, ROLE, Postgres, Proxy, as_postgres, postgres_bin, unwind_when_killed  # noqa: E402

CONNECTIONS_MAX = 10
RUN_DEADLINE_S = 600
# A line of pg_regress's about a test: of a group or alone, passed or not, and how long it took.
VERDICT = re.compile(r"^(?:test +| +)(\S+) +\.\.\. (ok|FAILED|failed \(ignored\)) +(?:\(test process.*\) +)?(\d+) ms")


def tests_folder():
    """What fetch_regress.sh has brought last."""
    found = (ROOT / "target/regress").glob("*/libraries/regress.so")
    newest = max(found, key=lambda library: library.stat().st_mtime, default=None)
    if not newest:
        raise SystemExit("no regression tests: run tests/install.sh regress")
    return newest.parents[1]


class Run:
    """One run of the whole schedule: each test's verdict, in order, and its output."""

    def __init__(self, name, postgres, server, keep):
        self.name = name
        self.folder = postgres.folder / "regress"
        started = time.monotonic()
        self._prepare()
        self.text = self._pg_regress(server)
        self.verdicts = {found[1]: found[2] for found in map(VERDICT.match, self.text.splitlines()) if found}
        self.outputs = {path.stem: path.read_bytes().decode(errors="surrogateescape")
                        for path in (self.folder / "results").glob("*.out")}
        if keep:
            shutil.copytree(self.folder, keep / name, symlinks=True, dirs_exist_ok=True)
            (keep / name / "pg_regress.log").write_text(self.text)
        print(f"{name}: {len(self.passed())} of {len(self.verdicts)} passed, "
              f"{time.monotonic() - started:.0f} s", flush=True)

    def _prepare(self):
        """The server reads and writes files here, and so does pg_regress, as the same user."""
        shutil.copytree(tests_folder(), self.folder, symlinks=True)
        if os.geteuid() == 0:
            for path in (self.folder, *self.folder.rglob("*")):
                if not path.is_symlink():
                    shutil.chown(path, "postgres", "postgres")

    def _pg_regress(self, server):
        program = postgres_bin().parent / "lib/pgxs/src/test/regress/pg_regress"
        command = [program, f"--bindir={postgres_bin()}", f"--dlpath={self.folder}/libraries",
                   f"--inputdir={self.folder}", f"--outputdir={self.folder}", f"--schedule={self.folder}/parallel_schedule",
                   f"--host={server.host}", f"--port={server.port}", f"--user={ROLE}"]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        result = subprocess.run(
            as_postgres([str(part) for part in command]), cwd=self.folder, env={**inherited, "PGPASSWORD": PASSWORD},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            timeout=RUN_DEADLINE_S)
        if result.returncode not in (0, 1):  # 1: some tests failed
            raise RuntimeError(f"pg_regress ended with {result.returncode}: {result.stdout[-4000:]}")
        return result.stdout

    def passed(self):
        return [test for test, verdict in self.verdicts.items() if verdict == "ok"]


def a_server():
    """A server as pg_regress would start one itself; a JIT would only take time."""
    return Postgres(jit="off", max_prepared_transactions=2, shared_buffers="128MB")


def a_proxy(postgres):
    """Before every database of that server."""
    secret = {"username": ROLE, "password": PASSWORD, "host": postgres.host, "port": postgres.port}
    return Proxy(postgres, secrets=[secret], pool={"max_connections": CONNECTIONS_MAX})


def run_directly(keep):
    with a_server() as postgres:
        return Run("directly", postgres, postgres, keep)


def run_through_proxy(keep):
    with a_server() as postgres, a_proxy(postgres) as proxy:
        try:
            run = Run("through pgsluice", postgres, proxy, keep)
            tell_metrics(proxy)
            return run
        finally:
            if keep:
                (keep / "proxy.log").write_text(proxy.log())


def tell_metrics(proxy):
    """How many sessions shared how many backends, and what pinned."""
    pins = {labels["reason"]: int(value) for name, labels, value in proxy.metrics()
            if name == "pgsluice_pins_total" and value}
    print(f"sessions: {proxy.metric('pgsluice_client_connections_received_total'):.0f}, "
          f"backends at once: at most {CONNECTIONS_MAX}, "
          f"borrowed: {proxy.metric('pgsluice_database_connection_borrow_seconds_count'):.0f} times, pins: "
          + (", ".join(f"{reason} {count}" for reason, count in sorted(pins.items())) or "none"))


class Explained:
    """The differences that a test may have: `differences/TEST.diff`.

    Lines that begin with # say why. `mask REGEX` names what may have any value: it is masked in both outputs. Then come
    the parts of a diff, each begun by @@. Any of them may be missing, as what a test meets depends on the backend it gets.
    """

    def __init__(self, test):
        file = DIFFERENCES / f"{test}.diff"
        self.exists = file.exists()
        text = file.read_text() if self.exists else ""
        lines = [line for line in text.splitlines(keepends=True) if not line.startswith("#")]
        self.masks = [re.compile(line.removeprefix("mask ").rstrip("\n"), re.MULTILINE)
                      for line in lines if line.startswith("mask ")]
        self.parts = parts("".join(line for line in lines if not line.startswith("mask ")))

    def unexpected(self, direct, proxied):
        """What is different and not explained."""
        for mask in self.masks:
            direct, proxied = mask.sub("…", direct), mask.sub("…", proxied)
        return [part for part in difference(direct, proxied) if part not in self.parts]


def parts(diff):
    """The parts of a diff, without line numbers, so that they stay right when tests grow."""
    return [part.lstrip("\n") for part in re.split(r"^@@.*$", diff, flags=re.MULTILINE)[1:]]


def difference(direct, proxied):
    """What a test's output through the proxy has else, as the parts of a diff."""
    lines = difflib.unified_diff(direct.splitlines(keepends=True), proxied.splitlines(keepends=True), n=1)
    return parts("".join(lines))


def judge(direct, proxied):
    """Prints a line a test that passes directly; returns how many are right through the proxy, and how many are not."""
    right = wrong = 0
    for test in direct.passed():
        explained, verdict = Explained(test), proxied.verdicts.get(test, "did not run")
        unexpected = explained.unexpected(direct.outputs[test], proxied.outputs.get(test, ""))
        if verdict == "ok" or (explained.exists and not unexpected):
            right += 1
            print(f"ok {test}" + ("" if verdict == "ok" else ": differs as explained"))
        else:
            wrong += 1
            print(f"FAILED {test}: {verdict}", *unexpected, sep="\n@@\n")
    return right, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIR", help="leave results and logs here")
    keep = parser.parse_args().keep
    unwind_when_killed()
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    direct, proxied = run_directly(keep), run_through_proxy(keep)
    right, wrong = judge(direct, proxied)
    both = set(direct.passed()) & set(proxied.passed())
    print(f"regression tests: {len(direct.passed())} of {len(direct.verdicts)} pass directly, {len(both)} of these through "
          f"pgsluice, {right - len(both)} differ as explained")
    print(f"{right} passed, {wrong} failed", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
