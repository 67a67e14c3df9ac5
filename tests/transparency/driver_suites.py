#!/usr/bin/env python3
"""Drivers' own test suites through a proxy in transaction mode: what passes directly must pass there.

    tests/transparency/driver_suites.py [SUITE …]            no argument: all of them
    tests/transparency/driver_suites.py --direct [SUITE …]   the whole suite directly, too

The tests come with the source distributions on PyPI, by package name. What does not pass through the proxy is run
directly as well: what passes there is a difference. --direct also finds tests that are missing altogether.
"""

import argparse
import subprocess
import sys
import tarfile

from suites import FOLDER, VENV_PYTHON, Suite, compare, run_both, unwind_when_killed

LIBPQ = {"PGHOST": "{host}", "PGPORT": "{port}", "PGUSER": "{role}", "PGPASSWORD": "{password}",
         "PGDATABASE": "{database}", "PGSSLMODE": "disable"}
POOL = {"max_connections": 12, "connection_borrow_timeout": 20}


def sqlalchemy(driver):
    """SQLAlchemy's tests of its dialect and its engine, over one of its drivers.

    Reflection needs two more schemas, types need extensions. Left out are the 8,000 tests of ranges and arrays, which
    differ only in the value that goes there and back, and of `test/sql` what tests SQLAlchemy itself.
    """
    of_sql = [f"test/sql/test_{name}.py" for name in ("defaults", "query", "quote", "returning", "sequences", "types")]
    return Suite(
        f"sqlalchemy-{driver}",
        ["test/dialect/postgresql", "test/dialect/test_suite.py", "test/engine", *of_sql],
        ["-p", "no:warnings", "--backend-only", "-k", "not RangeRoundTrip and not ArrayRoundTrip",
         f"--dburi=postgresql+{driver}://{{url}}"],
        source="sqlalchemy==2.1.9", pool=POOL,
        prepare=["CREATE SCHEMA test_schema", "CREATE SCHEMA test_schema_2", "CREATE EXTENSION hstore",
                 "CREATE EXTENSION citext"])


SUITES = {suite.name: suite for suite in (
    sqlalchemy("psycopg"),
    Suite("asyncpg", ["tests"], source="asyncpg==0.32.0", unpack="tests", pool=POOL, own_environment=LIBPQ),
    Suite("psycopg2", ["tests"], source="psycopg2==2.9.13", unpack="tests", pool=POOL,
          prepare=["CREATE EXTENSION hstore"], own_environment={**LIBPQ, "PSYCOPG2_TESTDB": "{database}"}),
)}


def unpacked(suite):
    """The folder of the suite's source; downloaded when it is not there yet."""
    name, version = suite.source.split("==")
    folder = FOLDER / "sources" / f"{name}-{version}"
    if folder.exists():
        return folder
    downloads = FOLDER / "downloads"
    subprocess.run([str(VENV_PYTHON), "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                    "--no-binary", name, "--dest", str(downloads), suite.source], check=True)
    with tarfile.open(downloads / f"{name}-{version}.tar.gz") as archive:
        # Not the package itself: the installed one, with its compiled parts, is tested.
        wanted = f"{name}-{version}/{suite.unpack}"
        members = [member for member in archive.getmembers() if member.name.startswith(wanted)]
        archive.extractall(folder.parent, members=members, filter="data")
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--direct", action="store_true", help="run all of a suite directly, too")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    arguments = parser.parse_args()
    chosen = arguments.suites or list(SUITES)
    if unknown := set(chosen) - set(SUITES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    unwind_when_killed()
    passed = failed = 0
    for name in chosen:
        print(f"{name} ({SUITES[name].source})", flush=True)
        suite = SUITES[name]
        same, different = compare(suite, *run_both(suite, unpacked(suite), all_directly=arguments.direct))
        passed, failed = passed + same, failed + different
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
