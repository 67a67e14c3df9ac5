#!/usr/bin/env python3
"""psycopg 3's own test suite, directly and through a proxy in transaction mode: what passes directly must pass there.

    tests/transparency/psycopg_suite.py --tests DIR [PATH …]

DIR is a checkout of psycopg's sources of the installed version; nothing is downloaded. DRIVER_SUITES_PYTHON names the
Python that has psycopg, pytest and anyio. Left out in both worlds: the pool's tests and CockroachDB's, type checking,
and those that measure time or need a TCP proxy of psycopg's own. `explained/psycopg.txt` lists what differs, and why.
"""

import argparse
import pathlib
import sys

import suites

MARKERS = "not slow and not timing and not proxy and not mypy and not pool and not dns and not gevent"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", required=True, type=pathlib.Path, metavar="DIR", help="psycopg's sources")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="of DIR, tests/… (without it: all)")
    arguments = parser.parse_args()
    suites.unwind_when_killed()
    suite = suites.Suite(
        "psycopg", arguments.paths or ["tests"],
        ["-p", "no:randomly", "-m", MARKERS, "--ignore=tests/pool", "--ignore=tests/crdb",
         "--test-dsn=postgresql://{url}"],
        pool={"max_connections": 8, "connection_borrow_timeout": 20})
    same, different = suites.compare(suite, *suites.run_both(suite, arguments.tests, all_directly=True))
    print(f"{same} passed, {different} failed", flush=True)
    return 1 if different or not same else 0


if __name__ == "__main__":
    sys.exit(main())
