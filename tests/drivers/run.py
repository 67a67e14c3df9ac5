#!/usr/bin/env python3
"""Real drivers against one PostgreSQL through one proxy in transaction mode, plain and over TLS.

    tests/drivers/run.py [DRIVER …]             no argument: all of them
    tests/drivers/run.py --direct [DRIVER …]    without the proxy, to see whether a check itself is right

Each driver is a program of its own, in the driver's language. It finds the server by libpq's environment variables
and prints a line a check: `ok NAME`, or `FAILED NAME: why`. It ends with 0, whatever the checks said. After each
program the proxy's metrics must show that it left nothing behind and that the limit was kept.
"""

import argparse
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from harness import DATABASE, PASSWORD, ROLE, Postgres, Proxy, postgres_bin, wait_until  # noqa: E402

CONNECTIONS_MAX = 8
POOL = {"max_connections": CONNECTIONS_MAX, "connection_borrow_timeout": 20}
PROGRAM_DEADLINE_S = 180
VENV_PYTHON = ROOT / ".venv/bin/python"
JDBC_JAR = pathlib.Path("/usr/share/java/postgresql.jar")
JAVA_CLASSES = ROOT / "target/drivers/java"

DRIVERS = {
    "psql": [sys.executable, HERE / "psql.py"],
    "pgbench": [sys.executable, HERE / "pgbench.py"],
    "psycopg": [VENV_PYTHON, HERE / "with_psycopg.py"],
    "asyncpg": [VENV_PYTHON, HERE / "with_asyncpg.py"],
    "node": ["node", "--no-deprecation", HERE / "node/main.js"],
    "jdbc": ["java", "-XX:TieredStopAtLevel=1", "-Xmx256m", "-cp", f"{JAVA_CLASSES}:{JDBC_JAR}", "Main"],
}


class Report:
    """Counts the checks and prints each as it comes."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def ok(self, name):
        self.passed += 1
        print(f"ok {name}", flush=True)

    def fail(self, name, why):
        self.failed += 1
        print(f"FAILED {name}: {why}", flush=True)

    def check(self, name, test):
        """Passes unless `test` raises."""
        try:
            test()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the check's result
            self.fail(name, error)
        else:
            self.ok(name)


class Peak:
    """Samples, all the while, how many connections the database has and how many the proxy says it has."""

    def __init__(self, postgres, proxy):
        self.postgres, self.proxy = postgres, proxy
        self.own = self.told = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def _sample(self):
        while not self._over.wait(0.25):
            self.told = max(self.told, self.proxy.metric("pgsluice_database_connections"))
            # The one that asks is left out.
            self.own = max(self.own, int(self.postgres.sql(
                "select count(*) - 1 from pg_stat_activity where backend_type = 'client backend'")))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def assert_bounded(self):
        assert self.told, "no sample saw a database connection"
        assert self.told <= CONNECTIONS_MAX, f"metrics: {self.told} connections, at most {CONNECTIONS_MAX} allowed"
        assert self.own <= CONNECTIONS_MAX, f"database: {self.own} connections, at most {CONNECTIONS_MAX} allowed"


def environment(server, tls):
    """What a program gets; with TLS it must check the server's certificate."""
    own = {"PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": ROLE, "PGPASSWORD": PASSWORD,
           "PGDATABASE": DATABASE, "PGSSLMODE": "disable", "CONNECTIONS_MAX": str(CONNECTIONS_MAX),
           "POSTGRES_BIN": str(postgres_bin()), "PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8"}
    if tls:
        own |= {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": str(server.folder / "server.crt")}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return inherited | own


def run_program(command, env, name, report):
    """Runs a driver's program to its end and reports each of its checks."""
    process = subprocess.Popen(
        [str(part) for part in command], env=env, cwd=HERE, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    alarm = threading.Timer(PROGRAM_DEADLINE_S, os.killpg, (process.pid, signal.SIGKILL))
    alarm.start()
    checks = 0
    try:
        for line in process.stdout:
            verdict, _, rest = line.rstrip("\n").partition(" ")
            if verdict == "ok":
                report.ok(f"{name}: {rest}")
            elif verdict == "FAILED":
                check, _, why = rest.partition(": ")
                report.fail(f"{name}: {check}", why)
            else:
                print(f"   {line}", end="", flush=True)
                continue
            checks += 1
        code = process.wait()
    finally:
        alarm.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code != 0 or not checks:
        why = f"exit code {code} after {checks} checks, {PROGRAM_DEADLINE_S} s allowed"
        report.fail(f"{name}: the program runs to its end", why)


def nothing_left(proxy):
    """All clients are gone, hence nothing may be lent, pinned, waiting or in a transaction."""
    gauges = ["client_connections", "clients_waiting", "database_connections_borrowed",
              "database_connections_session_pinned", "database_connections_in_transaction"]

    def left():
        return {gauge: value for gauge in gauges if (value := proxy.metric(f"pgsluice_{gauge}"))}

    with contextlib.suppress(TimeoutError):
        wait_until(lambda: not left(), "an idle proxy", deadline_s=5)
    assert not left(), left()


def idle_in_the_database(postgres):
    """The database agrees: no transaction is open, no session-level lock is held."""
    busy = postgres.sql(
        "select state, query from pg_stat_activity"
        " where backend_type = 'client backend' and pid <> pg_backend_pid() and state <> 'idle'")
    assert not busy, busy
    locks = postgres.sql("select objid from pg_locks where locktype = 'advisory'")
    assert not locks, f"advisory locks held: {locks}"


def queries_by_tls(proxy):
    return {tls: proxy.metric("pgsluice_query_requests_total", tls=tls) for tls in ("yes", "no")}


def run_driver(driver, tls, postgres, proxy, report):
    name = f"{driver} {'tls' if tls else 'plain'}"
    if not proxy:
        run_program(DRIVERS[driver], environment(postgres, tls), name, report)
        return
    before = queries_by_tls(proxy)
    with Peak(postgres, proxy) as peak:
        run_program(DRIVERS[driver], environment(proxy, tls), name, report)
    after = queries_by_tls(proxy)

    def encrypted_as_asked():
        mine, other = ("yes", "no") if tls else ("no", "yes")
        assert after[mine] > before[mine] and after[other] == before[other], (before, after)

    report.check(f"{name}: encrypted as asked", encrypted_as_asked)
    report.check(f"{name}: no database connection is left lent", lambda: nothing_left(proxy))
    report.check(f"{name}: the database is idle", lambda: idle_in_the_database(postgres))
    report.check(f"{name}: the limit was kept", peak.assert_bounded)


def compile_java():
    JAVA_CLASSES.mkdir(parents=True, exist_ok=True)
    subprocess.run(["javac", "-Xlint:all", "-cp", JDBC_JAR, "-d", JAVA_CLASSES, HERE / "java/Main.java"],
                   check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("drivers", nargs="*", metavar="DRIVER", help=", ".join(DRIVERS))
    parser.add_argument("--direct", action="store_true", help="without the proxy")
    arguments = parser.parse_args()
    chosen = arguments.drivers or list(DRIVERS)
    if unknown := set(chosen) - set(DRIVERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if "jdbc" in chosen:
        compile_java()
    report = Report()
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(Postgres(tls=arguments.direct))
        proxy = None if arguments.direct else stack.enter_context(Proxy(postgres, tls=True, pool=POOL))
        for driver in chosen:
            for tls in (False, True):
                run_driver(driver, tls, postgres, proxy, report)
        if report.failed and proxy:
            print("the proxy's log ends with:", *proxy.log().splitlines()[-40:], sep="\n   ", flush=True)
    print(f"drivers: {time.monotonic() - started:.0f} s")
    print(f"{report.passed} passed, {report.failed} failed", flush=True)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
