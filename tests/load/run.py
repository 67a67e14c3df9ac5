#!/usr/bin/env python3
"""Runs the load tests: real servers, thousands of clients, gigabytes, on this machine. Bounded in count and in time.

    tests/load/run.py              all of them
    tests/load/run.py idle stream  some

Each file beside this one is a test group: its functions called `test_…` are the tests, their docstrings what they
promise. The last line is "N passed, N failed"; the exit code is 0 if none failed.
"""

import importlib
import pathlib
import sys
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from harness import raise_descriptor_limit, unwind_when_killed  # noqa: E402

GROUPS = ("tpcb", "stream", "idle", "logins")
DESCRIPTORS = 12_000


def tests_of(group):
    module = importlib.import_module(group)
    return [test for name, test in vars(module).items() if name.startswith("test_")]


def passes(group, test):
    name = f"{group}.{test.__name__.removeprefix('test_')}"
    print(f"{name} ...", flush=True)
    start = time.monotonic()
    try:
        test(lambda line: print(f"    {line}", flush=True))
    except Exception:
        traceback.print_exc(file=sys.stdout)
        print(f"{name}: FAILED after {time.monotonic() - start:.1f} s", flush=True)
        return False
    print(f"{name}: ok in {time.monotonic() - start:.1f} s", flush=True)
    return True


def main(names):
    unknown = set(names) - set(GROUPS)
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    unwind_when_killed()
    raise_descriptor_limit(DESCRIPTORS)
    results = [passes(group, test) for group in names or GROUPS for test in tests_of(group)]
    failed = results.count(False)
    print(f"{len(results) - failed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
