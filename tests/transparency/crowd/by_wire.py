"""Drivers that can't be had as packages here: their sessions played by hand, in the messages they send at their defaults.

Which messages, in which batches, under which names, at connecting, in a transaction and at the return to a pool, was
read in their sources. The queries that load a driver's types stand for it in a shorter form: what matters here is that
there is one and when it comes.
"""

import hashlib
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from common import NOON, SETTINGS, commits, run_threads  # noqa: E402
from extended import FLUSH, SYNC, ask, bind, close, describe, execute, parse, query  # noqa: E402
from harness.wire import Client, ServerError  # noqa: E402

LIMIT = "select owner from box where note = 'first' limit $1"
OWNER = "select owner from box where id = $1"
TYPES = """
    SELECT ns.nspname, t.oid, t.typname, t.typtype, t.typelem, t.typbasetype, r.rngsubtype
    FROM pg_type AS t JOIN pg_namespace AS ns ON ns.oid = t.typnamespace LEFT JOIN pg_range AS r ON r.rngtypid = t.oid
    WHERE t.typtype IN ('b', 'r', 'm', 'e', 'd') AND t.typrelid = 0 ORDER BY t.oid"""
ENUMS = """
    SELECT t.oid, e.enumlabel FROM pg_enum AS e JOIN pg_type AS t ON t.oid = e.enumtypid ORDER BY t.oid, e.enumsortorder"""


class Server:
    """Where libpq's environment variables point."""

    def __init__(self):
        self.host, self.port = os.environ["PGHOST"], int(os.environ["PGPORT"])


class Session:
    """One client's session. A driver tells how it connects, asks, begins, ends, and what it does before a transaction."""

    parameters = {"client_encoding": "UTF8"}

    def __init__(self, client):
        self.client = client
        self.wire = Client(Server(), **self.parameters, **self.login(client))
        self.prepared = {}
        self.on_connect()

    def login(self, client):
        return {"application_name": client.name, "search_path": client.schema, "TimeZone": client.zone}

    def on_connect(self):
        self.fetch("select set_config('app.client', $1, false)", self.client.name)

    def check_out(self):
        """At the beginning of a transaction's checkout from the driver's pool."""

    def check_in(self):
        """At its return."""

    def simple(self, sql):
        return ask(self.wire, query(sql))

    def fetch(self, sql, *values):
        raise NotImplementedError

    def begin(self):
        self.simple("begin")

    def end(self, word):
        self.simple(word)

    def close(self):
        self.wire.close()


def close_oldest(session):
    """What a driver does when its cache is full; here at each return, so that it happens."""
    oldest = next(iter(session.prepared))
    ask(session.wire, close(b"S", session.prepared.pop(oldest)), SYNC)


class Rails8(Session):
    """ActiveRecord 8: what differs from login's ParameterStatus is SET; a reset is DISCARD ALL and the SETs again; a
    session is tried with `;` before use; the statements' names begin anew with each session.
    """

    def login(self, client):
        return {"application_name": client.name}

    def on_connect(self):
        self.counter = 0
        for setting, value in (("standard_conforming_strings", "on"), ("intervalstyle", "iso_8601"),
                               ("client_min_messages", "warning"), ("timezone", self.client.zone),
                               ("app.client", self.client.name)):
            self.simple(f"SET SESSION {setting} TO '{value}'")
        self.simple(f"SET search_path TO {self.client.schema}")
        self.simple("SHOW search_path")
        self.simple(TYPES)

    def check_out(self):
        self.simple(";")

    def check_in(self):
        self.counter += 1
        if self.counter % 8 == 0:  # reset!
            self.simple("DISCARD ALL")
            self.prepared.clear()
            self.on_connect()

    def fetch(self, sql, *values):
        name = self.prepared.get(sql)
        if not name:
            name = self.prepared[sql] = f"a{len(self.prepared) + 1}"
            ask(self.wire, parse(name, sql), SYNC)
            ask(self.wire, describe(b"S", name), SYNC)
        return ask(self.wire, bind(name, *values), describe(b"P", ""), execute(), SYNC)

    def begin(self):
        self.simple("BEGIN")

    def end(self, word):
        self.simple(word.upper())


class Pgx5(Session):
    """pgx 5: a statement's name is a digest of its text, so all clients have the same; what leaves its cache is closed;
    a pool tries an idle session with an empty statement.
    """

    def check_out(self):
        self.simple("-- ping")

    def check_in(self):
        close_oldest(self)

    def fetch(self, sql, *values):
        name = self.prepared.get(sql)
        if not name:
            name = self.prepared[sql] = "stmtcache_" + hashlib.sha256(sql.encode()).hexdigest()[:48]
            ask(self.wire, parse(name, sql), describe(b"S", name), SYNC)
        return ask(self.wire, bind(name, *values), describe(b"P", ""), execute(), SYNC)


class Prisma(Session):
    """Prisma: its schema is SET at connecting; every statement is prepared once, s0, s1, …, and closed when it leaves a
    cache of a hundred. Its parameters' types are not told.
    """

    def login(self, client):
        return {"application_name": client.name}

    def on_connect(self):
        self.counter = 0
        self.simple(f'SET search_path = "{self.client.schema}";\n')
        self.fetch("SELECT version()")
        self.simple(f"set timezone to '{self.client.zone}'")
        self.fetch("select set_config('app.client', $1, false)", self.client.name)

    def fetch(self, sql, *values):
        name = self.prepared.get(sql)
        if not name:
            name = self.prepared[sql] = f"s{self.counter}"
            self.counter += 1
            ask(self.wire, parse(name, sql), describe(b"S", name), SYNC)
        return ask(self.wire, bind(name, *values), execute(), SYNC)

    def begin(self):
        self.simple("BEGIN")
        self.simple("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")

    def check_in(self):
        close_oldest(self)


class Npgsql(Session):
    """Npgsql: unnamed statements, all of one in one batch; explicit ones are _p1, _p2, …. BEGIN, and what resets the
    session at its return to the pool, wait to be sent in one write with what comes next. With prepared statements the
    reset can't be DISCARD ALL.
    """

    RESET = ("SET SESSION AUTHORIZATION DEFAULT;RESET ALL;CLOSE ALL;UNLISTEN *;SELECT pg_advisory_unlock_all();"
             "DISCARD SEQUENCES;DISCARD TEMP")

    def on_connect(self):
        self.waiting = []
        self.simple(f"SELECT version();{TYPES};{ENUMS}")
        self.set_own()

    def set_own(self):
        self.fetch("select set_config('app.client', $1, false)", self.client.name)

    def ask(self, *messages):
        """In one write with what waits, each of which has its own ReadyForQuery."""
        waiting, self.waiting = self.waiting, []
        return ask(self.wire, *waiting, *messages, times=len(waiting) + 1)

    def simple(self, sql):
        return self.ask(query(sql))

    def fetch(self, sql, *values):
        if sql != OWNER:
            return self.ask(parse("", sql), bind("", *values), describe(b"P", ""), execute(), SYNC)
        if sql not in self.prepared:
            self.prepared[sql] = "_p1"
            self.ask(parse("_p1", sql), describe(b"S", "_p1"), SYNC)
        replies = self.ask(bind("_p1", *values), execute(), SYNC)
        replies.rows = replies.rows[-1:]
        return replies

    def begin(self):
        self.waiting.append(query("BEGIN TRANSACTION ISOLATION LEVEL READ COMMITTED"))

    def end(self, word):
        self.simple(word.upper())

    def check_out(self):
        self.set_own()

    def check_in(self):
        # Every second one unprepares first.
        if self.client.committed % 2:
            for name in self.prepared.values():
                self.ask(close(b"S", name), SYNC)
            self.prepared.clear()
        self.waiting.append(query(self.RESET if self.prepared else "DISCARD ALL"))


class Postgrex(Session):
    """Postgrex under Ecto: types at connecting; ecto_1, ecto_2, … prepared with Flush in place of Sync, executed in the
    same batch; an idle session is tried with a lone Sync.
    """

    def on_connect(self):
        self.simple(TYPES)
        self.fetch("select set_config('app.client', $1, false)", self.client.name)

    def check_out(self):
        ask(self.wire, SYNC)

    def fetch(self, sql, *values):
        name = self.prepared.get(sql)
        if not name:
            name = self.prepared[sql] = f"ecto_{len(self.prepared) + 1}"
            self.wire.send(parse(name, sql) + describe(b"S", name) + FLUSH)
            tags = b""
            while not tags.endswith((b"T", b"n")):
                tags += self.wire.read()[0]
            self.client.expect("before the Sync", tags[:2], b"1t")
        return ask(self.wire, bind(name, *values), execute(), SYNC)


DRIVERS = {"rails-8": Rails8, "pgx-5": Pgx5, "prisma": Prisma, "npgsql": Npgsql, "postgrex": Postgrex}


def turn(client, session, number):
    session.check_out()
    session.begin()
    fetch, own = session.fetch, client.number
    client.expect_settings(fetch(SETTINGS).rows[-1])
    client.expect("a shared text under the own search_path", fetch(OWNER, number % 3 + 1).value, str(own))
    client.expect("the own text", fetch(f"select $1::int + {own * 1000}", number).value, str(own * 1000 + number))
    client.expect("noon in the own zone", fetch(NOON).value, client.noon)
    client.expect("two rows", fetch(LIMIT, 2).rows, [[str(own)]] * 2)
    client.backends.add(fetch("select pg_backend_pid()").value)
    fetch("insert into public.ledger values ($1::int, $2::int)", own, number)
    fetch("insert into box (owner, note) values ($1, 'later')", own)
    client.expect("the own rows", fetch("select count(*) from box where note = 'later'").value,
                  str(client.inserted + 1))
    fail_halfway(client, session, number)
    session.end("commit" if commits(number) else "rollback")
    if commits(number):
        client.committed += 1
        client.inserted += 1
    session.check_in()


def fail_halfway(client, session, number):
    """Now and then a statement fails inside a savepoint."""
    if number % 6:
        return
    session.simple("savepoint here")
    try:
        session.fetch("select 1 / ($1::int - $1::int)", number)
        client.expect("division by zero", "an answer", "22012")
    except ServerError as error:
        client.expect("division by zero", error.sqlstate, "22012")
    session.simple("rollback to savepoint here")


run_threads(DRIVERS[sys.argv[1]], turn, lambda session: session.close())
