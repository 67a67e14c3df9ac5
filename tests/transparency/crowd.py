#!/usr/bin/env python3
"""Drivers and ORMs at their defaults: 100 clients each over 5 backends, in transaction mode.

    tests/transparency/crowd.py [DRIVER …]      no argument: all of them
    tests/transparency/crowd.py --direct …      without the proxy, to see whether a program's own checks are right
    tests/transparency/crowd.py --session …     in session mode, where the crowd does not fit: has to fail
    tests/transparency/crowd.py --rounds 1000 … more transactions a client than the usual

Each driver is a program of its own in crowd/, in the driver's language. It opens CLIENTS sessions, each with settings of
its own, prints `ready` and waits for a line; runs ROUNDS transactions in each session, all at the same time, prints
`done TRANSACTIONS BACKENDS` (how many were committed, how many backends a session met on average) and waits again; then
it closes its sessions. A line `WRONG …` is an answer that is not the client's own, `ERROR …` an error it got; then it
stops that client.

What a client checks, in each driver's own way: it has schema crowd_N first in its search_path, and there a table `box`
whose rows say who owns them; application_name, TimeZone and app.client are its own. Every transaction it commits leaves
a row in public.ledger, every one it rolls back does not. Those are counted here, directly.
"""

import argparse
import contextlib
import os
import pathlib
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from harness import DATABASE, PASSWORD, ROLE, Postgres, Proxy  # noqa: E402
from harness.observe import Backends, Every  # noqa: E402

CLIENTS = 100
CONNECTIONS_MAX = 5
ROUNDS = 12
DEADLINE_S = 120
SAMPLE_EVERY_S = 0.05
POOL = {"max_connections": CONNECTIONS_MAX, "connection_borrow_timeout": 30}
SESSION_POOL = {"max_connections": CONNECTIONS_MAX, "connection_borrow_timeout": 2, "mode": "session"}

PROGRAMS = HERE / "crowd"
BUILT = ROOT / "target/crowd"
VENV_PYTHON = ROOT / ".venv/bin/python"
JDBC_JAR = pathlib.Path("/usr/share/java/postgresql.jar")
GO_PACKAGES = "/usr/share/gocode"


def python(name, *arguments):
    return [VENV_PYTHON, PROGRAMS / f"{name}.py", *arguments]


def by_wire(name):
    return [sys.executable, PROGRAMS / "by_wire.py", name]


JAVA = ["java", "-XX:TieredStopAtLevel=1", "-Xmx256m", "-Xss512k", "-cp", f"{BUILT}:{JDBC_JAR}", "Crowd"]

DRIVERS = {
    "psycopg": python("with_psycopg"),
    "psycopg-pipeline": python("with_psycopg", "pipeline"),
    "asyncpg": python("with_asyncpg"),
    "sqlalchemy-psycopg": python("with_sqlalchemy", "psycopg"),
    "sqlalchemy-asyncpg": python("with_sqlalchemy", "asyncpg"),
    "django": python("with_django"),
    "django-hold": python("with_django", "hold"),
    "jdbc": JAVA,
    "jdbc-autocommit": [*JAVA, "autocommit"],
    "node-pg": ["node", PROGRAMS / "with_node_pg.js"],
    "postgres-js": ["node", PROGRAMS / "with_postgres_js.js"],
    "pgx": [BUILT / "with_pgx"],
    "lib-pq": [BUILT / "with_lib_pq"],
    "rails": ["ruby", PROGRAMS / "with_rails.rb"],
    "rails-migrations": ["ruby", PROGRAMS / "with_rails.rb", "migrations"],
    # Not to be had as packages here: what they send, sent by hand.
    "rails-8": by_wire("rails-8"),
    "pgx-5": by_wire("pgx-5"),
    "prisma": by_wire("prisma"),
    "npgsql": by_wire("npgsql"),
    "postgrex": by_wire("postgrex"),
}

# Pins that no transaction pool can avoid: what the driver asks for outlives its transaction.
UNAVOIDABLE = {
    "django-hold": {"hold_cursor": "QuerySet.iterator() outside a transaction declares its cursor WITH HOLD"},
    "rails-migrations": {"advisory_lock": "one migration at a time: pg_try_advisory_lock, held over the transactions"},
}

TABLES = f"""
    create type public.mood as enum ('calm', 'busy');
    create table public.ledger (client int not null, round int not null);
    do $$ begin for n in 0..{CLIENTS - 1} loop
        execute format('create schema crowd_%s', n);
        execute format('create table crowd_%s.box (id serial primary key, owner int not null, note text)', n);
        execute format('insert into crowd_%s.box (owner, note) select %s, ''first'' from generate_series(1, 3)', n, n);
    end loop; end $$
"""
NO_TABLES = f"""
    set client_min_messages to warning; drop table public.ledger; drop type public.mood;
    do $$ begin for n in 0..{CLIENTS - 1} loop execute format('drop schema crowd_%s cascade', n); end loop; end $$
"""


class Fault(Exception):
    """What the run of a driver showed that it may not."""


class Program:
    """A driver's program, taken from one of its lines to the next."""

    def __init__(self, command, server, rounds):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        own = {"PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": ROLE, "PGPASSWORD": PASSWORD,
               "PGDATABASE": DATABASE, "PGSSLMODE": "disable", "CLIENTS": str(CLIENTS), "ROUNDS": str(rounds),
               "PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8"}
        self.rounds = rounds
        self.wrong, self.errors = [], []
        self.process = subprocess.Popen(
            [str(part) for part in command], env=inherited | own, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        self._alarm = threading.Timer(DEADLINE_S, self.process.kill)
        self._alarm.start()

    def until(self, word):
        """Reads on to the line that begins with that word; returns the rest of it, by words."""
        for line in self.process.stdout:
            first, _, rest = line.rstrip("\n").partition(" ")
            if first == word:
                return rest.split()
            if first == "WRONG":
                self.wrong.append(rest)
            elif first == "ERROR":
                self.errors.append(rest)
            else:
                print(f"   {line}", end="", flush=True)
        raise Fault(f"the program ended before it was {word}; errors: {self.errors[:3]}")

    def go_on(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self):
        self.go_on()
        for line in self.process.stdout:
            print(f"   {line}", end="", flush=True)
        if code := self.process.wait():
            raise Fault(f"the program ended with {code}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._alarm.cancel()
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Watch:
    """The most database connections there were, as the proxy tells it and as the server does."""

    def __init__(self, proxy, backends):
        self.proxy, self.backends = proxy, backends
        self.told_peak = 0

    def look(self):
        self.told_peak = max(self.told_peak, self.proxy.metric("pgsluice_database_connections"))
        self.backends.look()


def by_reason(proxy, name):
    """A family of pins by its reason, without those that are zero."""
    found = {}
    for sample, labels, value in proxy.metrics():
        if sample == name and value:
            found[labels["reason"]] = found.get(labels["reason"], 0) + int(value)
    return found


def demand(true, what):
    if not true:
        raise Fault(what)


def all_connected(proxy, when):
    connected = proxy.metric("pgsluice_client_connections")
    demand(connected == CLIENTS, f"{connected:.0f} clients are connected {when}, not {CLIENTS}")


def judge_answers(program, postgres, transactions):
    demand(not program.errors, f"{len(program.errors)} errors, such as: {program.errors[0] if program.errors else ''}")
    demand(not program.wrong,
           f"{len(program.wrong)} wrong answers, such as: {program.wrong[0] if program.wrong else ''}")
    in_ledger = int(postgres.sql("select count(*) from public.ledger"))
    demand(in_ledger == transactions, f"{transactions} transactions were committed, {in_ledger} are in the ledger")
    twice = postgres.sql("select client, round from public.ledger group by 1, 2 having count(*) > 1 limit 1")
    demand(not twice, f"twice in the ledger: {twice}")
    strange = postgres.sql("select count(*) from public.ledger where client not between 0 and "
                           f"{CLIENTS - 1} or round not between 0 and {program.rounds - 1} or round % 3 = 2")
    demand(strange == "0", f"{strange} rows in the ledger that nobody committed")


def judge_pool(name, proxy, watch, met, pins):
    allowed = UNAVOIDABLE.get(name, {})
    avoidable = {reason: count for reason, count in pins.items() if reason not in allowed}
    demand(not avoidable, f"pins that can be avoided: {avoidable}")
    demand(set(allowed) == set(pins), f"pins expected: {sorted(allowed)}, seen: {pins}")
    left = by_reason(proxy, "pgsluice_database_connections_session_pinned")
    demand(not left, f"still pinned when all is done: {left}")
    demand(0 < watch.told_peak <= CONNECTIONS_MAX, f"metrics: {watch.told_peak:.0f} database connections")
    demand(watch.backends.peak <= CONNECTIONS_MAX, f"server: {watch.backends.peak} database connections")
    made = proxy.metric("pgsluice_database_connection_setup_total")
    demand(made == watch.told_peak, f"{made:.0f} database connections were made, {watch.told_peak:.0f} at a time: some died")
    demand(met >= 2, f"a session met {met} backends on average: nothing was multiplexed")


def run_direct(name, postgres, rounds):
    with Program(DRIVERS[name], postgres, rounds) as program:
        program.until("ready")
        program.go_on()
        transactions = int(program.until("done")[0])
        program.end()
        judge_answers(program, postgres, transactions)
        print(f"ok {name}: direct, {transactions} transactions, no wrong answer", flush=True)


def run_through_proxy(name, postgres, rounds, pool):
    with (Proxy(postgres, pool=pool) as proxy, Backends(postgres) as backends,
          Program(DRIVERS[name], proxy, rounds) as program):
        try:
            said, fault = drive(name, postgres, proxy, backends, program), None
        except Fault as caught:  # not for the proxy's `with`: that would print its whole log
            fault = f"{caught}; {seen_in_log(proxy)}"
    if fault:
        raise Fault(fault)
    print(f"ok {name}: {said}", flush=True)


def drive(name, postgres, proxy, backends, program):
    """Takes a program through its run and judges it; returns what to say of it."""
    watch = Watch(proxy, backends)
    with Every(SAMPLE_EVERY_S, watch.look):
        program.until("ready")
        all_connected(proxy, "before the first transaction")
        started = time.monotonic()
        program.go_on()
        transactions, met = program.until("done")
        took = time.monotonic() - started
        all_connected(proxy, "after the last transaction")
    pins = by_reason(proxy, "pgsluice_pins_total")
    judge_answers(program, postgres, int(transactions))
    judge_pool(name, proxy, watch, float(met), pins)
    program.end()
    unavoidable = ", ".join(f"{count} {reason} ({UNAVOIDABLE[name][reason]})" for reason, count in pins.items())
    return (f"{CLIENTS} clients over {watch.told_peak:.0f} backends, {CLIENTS / watch.told_peak:.0f} to 1; "
            f"{transactions} transactions in {took:.1f} s, {met} backends a session; "
            f"pins: {unavoidable or 'none'}; wrong answers: 0; errors: 0")


def seen_in_log(proxy):
    """The lines of the proxy's log that tell of something unusual, and how many there are."""
    telling = [line for line in proxy.log().splitlines() if any(word in line for word in ("pinned", "WARN", "leak"))]
    return f"{len(telling)} lines in the log, such as: {telling[0] if telling else 'none'}"


def build(names):
    """Compiles what has to be compiled, if it has changed."""
    BUILT.mkdir(parents=True, exist_ok=True)
    if any(name.startswith("jdbc") for name in names) and is_older(BUILT / "Crowd.class", PROGRAMS / "Crowd.java"):
        subprocess.run(["javac", "-Xlint:all", "-cp", JDBC_JAR, "-d", BUILT, PROGRAMS / "Crowd.java"], check=True)
    for name, program in (("pgx", "with_pgx"), ("lib-pq", "with_lib_pq")):
        sources = [PROGRAMS / "go" / f"{program}.go", PROGRAMS / "go/common.go"]
        if name in names and is_older(BUILT / program, *sources):
            go = {"GO111MODULE": "off", "GOPATH": GO_PACKAGES, "GOFLAGS": "", "CGO_ENABLED": "0"}
            subprocess.run(["go", "build", "-o", BUILT / program, *sources], check=True, env={**os.environ, **go})


# What a program needs beside its driver's package, and where it comes from.
NEEDS = {
    "pgx": (pathlib.Path(GO_PACKAGES, "src/github.com/jackc/pgx"), "golang-go, golang-github-jackc-pgx-v4-dev"),
    "lib-pq": (pathlib.Path(GO_PACKAGES, "src/github.com/lib/pq"), "golang-go, golang-github-lib-pq-dev"),
    "rails": (pathlib.Path("/usr/share/doc/ruby-activerecord"), "ruby-activerecord, ruby-pg"),
    "rails-migrations": (pathlib.Path("/usr/share/doc/ruby-activerecord"), "ruby-activerecord, ruby-pg"),
}


def can_run(name):
    """Whether what the program needs is there; says so if it is not."""
    path, packages = NEEDS.get(name, (ROOT, ""))
    if not path.exists():
        print(f"left out {name}: needs the packages {packages}", flush=True)
    return path.exists()


def is_older(made, *sources):
    return not made.exists() or made.stat().st_mtime < max(source.stat().st_mtime for source in sources)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("drivers", nargs="*", metavar="DRIVER", help=", ".join(DRIVERS))
    parser.add_argument("--direct", action="store_true", help="without the proxy")
    parser.add_argument("--session", action="store_true", help="in session mode: has to fail")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"transactions a client, {ROUNDS} if not told")
    arguments = parser.parse_args()
    names = arguments.drivers or list(DRIVERS)
    if unknown := set(names) - set(DRIVERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    names = [name for name in names if can_run(name)]
    build(names)
    passed = failed = 0
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        # Room for a crowd that comes without the proxy.
        postgres = stack.enter_context(Postgres(max_connections=CLIENTS + 20, max_locks_per_transaction=1000))
        for name in names:
            postgres.sql(TABLES)
            try:
                # Half as many where every transaction pins: that is slow, and shown sooner.
                rounds = arguments.rounds // 2 if name in UNAVOIDABLE else arguments.rounds
                if arguments.direct:
                    run_direct(name, postgres, rounds)
                else:
                    run_through_proxy(name, postgres, rounds, SESSION_POOL if arguments.session else POOL)
                passed += 1
            except Fault as fault:
                failed += 1
                print(f"FAILED {name}: {fault}", flush=True)
            postgres.sql(NO_TABLES)
    print(f"crowd: {time.monotonic() - started:.0f} s")
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
