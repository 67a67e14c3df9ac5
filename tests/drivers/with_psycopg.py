"""psycopg 3 through the proxy: sync, pipeline mode, async, and its default of preparing after five executions."""

import asyncio
import os
import threading
import time
import uuid
from datetime import datetime, timezone
from decimal import Decimal

import psycopg
from psycopg import errors, sql
from psycopg.rows import dict_row

from checks import Checks, Within, same

CONNECTIONS_MAX = int(os.environ["CONNECTIONS_MAX"])
UNIQUE = f"psycopg_{os.getpid()}"


def connect(**options):
    return psycopg.connect(autocommit=True, connect_timeout=10, **options)


def login():
    with connect() as connection:
        same(connection.execute("select current_user").fetchone(), ("demo",))
        same(connection.pgconn.ssl_in_use, os.environ["PGSSLMODE"] != "disable")


def wrong_password():
    try:
        connect(password="wrong")
    except psycopg.OperationalError as error:
        assert "password authentication failed" in str(error), error
    else:
        raise AssertionError("let in")


def parameters(binary):
    values = (42, 2**62, "ü and '", b"\x00\xff\\", None, Decimal("12345.678900"), [1, None, 3], 1.5, True,
              uuid.UUID(int=7), datetime(2024, 2, 29, 12, 30, 15, 123456, timezone.utc))
    with connect() as connection, connection.cursor(binary=binary) as cursor:
        cursor.execute("select " + ", ".join(["%t", "%b", "%s"][index % 3] for index in range(len(values))),
                       values)
        same(cursor.fetchone(), values)


def large_parameter_and_row():
    blob = os.urandom(5_000_000)
    with connect() as connection, connection.cursor(binary=True) as cursor:
        same(cursor.execute("select %b::bytea", [blob]).fetchone(), (blob,))


def prepares_by_itself():
    with connect() as connection:
        same(connection.prepare_threshold, 5)
        for number in range(20):
            same(connection.execute("select %s::int + 1", [number]).fetchone(), (number + 1,))
        # Others' statements may be there: a proxy shares them.
        count = "select count(*) > 0 from pg_prepared_statements where statement = 'select $1::int + 1'"
        same(connection.execute(count).fetchone(), (True,))


def prepares_at_once_and_forgets():
    with connect() as connection:
        connection.prepared_max = 3
        for round_ in range(3):
            for number in range(8):
                row = connection.execute(f"select %s::int as c{number}", [round_], prepare=True).fetchone()
                same(row, (round_,))


def the_same_statement_by_two_sessions():
    with connect() as one, connect() as two:
        for number in range(8):
            same(one.execute("select %s::text", [f"one {number}"], prepare=True).fetchone(), (f"one {number}",))
            same(two.execute("select %s::int * 2", [number], prepare=True).fetchone(), (number * 2,))


def pipeline():
    with connect() as connection, connection.pipeline():
        cursors = [connection.execute("select %s::int", [number]) for number in range(300)]
        same([cursor.fetchone()[0] for cursor in cursors], list(range(300)))


def pipeline_in_a_transaction():
    with connect(prepare_threshold=None) as connection:
        connection.execute(f"create table {UNIQUE}_pipe (id int)")
        with connection.pipeline(), connection.transaction():
            for number in range(50):
                connection.execute(f"insert into {UNIQUE}_pipe values (%s)", [number])
        same(connection.execute(f"select count(*) from {UNIQUE}_pipe").fetchone(), (50,))
        connection.execute(f"drop table {UNIQUE}_pipe")


def pipeline_with_an_error():
    with connect() as connection:
        try:
            with connection.pipeline() as pipe:
                first = connection.execute("select 1")
                pipe.sync()
                connection.execute("select 1/0")
                connection.execute("select 2")  # the server skips this
                pipe.sync()
        except errors.DivisionByZero:
            pass
        else:
            raise AssertionError("no error")
        same(first.fetchone(), (1,))
        with connection.pipeline():
            last = connection.execute("select 3")
        same(last.fetchone(), (3,))


def executemany():
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"create table {UNIQUE}_many (id int, note text)")
        cursor.executemany(f"insert into {UNIQUE}_many values (%s, %s) returning id",
                           [(number, f"n{number}") for number in range(500)], returning=True)
        same(sum(1 for _ in cursor.results()), 500)
        same(cursor.execute(f"select count(*), sum(id) from {UNIQUE}_many").fetchone(), (500, 124750))
        cursor.execute(f"drop table {UNIQUE}_many")


def copy(binary):
    rows = [(number, f"line {number}\twith a tab") for number in range(5000)]
    options = sql.SQL(" (format binary)" if binary else "")
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"create table {UNIQUE}_copy (id int4, note text)")
        try:
            with cursor.copy(sql.SQL("copy {} from stdin{}").format(sql.Identifier(f"{UNIQUE}_copy"), options)) as copy_in:
                copy_in.set_types(["int4", "text"])
                for row in rows:
                    copy_in.write_row(row)
            with cursor.copy(sql.SQL("copy {} to stdout{}").format(sql.Identifier(f"{UNIQUE}_copy"), options)) as copy_out:
                copy_out.set_types(["int4", "text"])
                same(list(copy_out.rows()), rows)
        finally:
            cursor.execute(f"drop table {UNIQUE}_copy")


class Reason(Exception):
    """Ends a COPY early; psycopg then sends CopyFail, or a cancel and reads to the end."""


def copy_in_given_up():
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"create table {UNIQUE}_stop (id int)")
        try:
            with cursor.copy(f"copy {UNIQUE}_stop from stdin") as copy_in:
                copy_in.write("1\n")
                raise Reason
        except Reason:
            pass
        same(cursor.execute(f"select count(*) from {UNIQUE}_stop").fetchone(), (0,))
        cursor.execute(f"drop table {UNIQUE}_stop")


def copy_out_given_up():
    with connect() as connection, connection.cursor() as cursor:
        with Within(15):
            try:
                with cursor.copy("copy (select generate_series(1, 100000000)) to stdout") as copy_out:
                    same(copy_out.read_row(), ("1",))
                    raise Reason
            except Reason:
                pass
        same(cursor.execute("select 'after'").fetchone(), ("after",))


def transaction():
    with connect() as connection:
        connection.execute(f"create table {UNIQUE}_tx (id int)")
        with connection.transaction():
            connection.execute(f"insert into {UNIQUE}_tx values (1)")
        with connection.transaction(force_rollback=True):
            connection.execute(f"insert into {UNIQUE}_tx values (2)")
        with connection.transaction():
            try:
                with connection.transaction():  # a savepoint
                    connection.execute(f"insert into {UNIQUE}_tx values (3)")
                    connection.execute("select 1/0")
            except errors.DivisionByZero:
                pass
            connection.execute(f"insert into {UNIQUE}_tx values (4)")
        same(connection.execute(f"select id from {UNIQUE}_tx order by id").fetchall(), [(1,), (4,)])
        connection.execute(f"drop table {UNIQUE}_tx")


def transactions_without_autocommit():
    with psycopg.connect() as connection:
        connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        connection.read_only = True
        same(connection.execute("show transaction_isolation").fetchone(), ("serializable",))
        try:
            connection.execute(f"create table {UNIQUE}_ro (id int)")
        except errors.ReadOnlySqlTransaction:
            connection.rollback()
        else:
            raise AssertionError("wrote in a read-only transaction")
        same(connection.execute("select 1").fetchone(), (1,))
        connection.commit()


def error_then_goes_on():
    with connect() as connection:
        for _ in range(3):
            try:
                connection.execute("select %s / 0", [1])
            except errors.DivisionByZero as error:
                same(error.diag.sqlstate, "22012")
            else:
                raise AssertionError("no error")
            same(connection.execute("select %s", ["after"]).fetchone(), ("after",))


class Soon(threading.Thread):
    """Calls something in half a second, inside a block whose end tells its error."""

    def __init__(self, call):
        super().__init__()
        self.call, self.error = call, None

    def run(self):
        time.sleep(0.5)
        try:
            self.call()
        except Exception as error:  # noqa: BLE001 - raised at the block's end
            self.error = error

    def __enter__(self):
        self.start()

    def __exit__(self, *_):
        self.join()
        if self.error:
            raise self.error


def cancel(call):
    with connect() as connection, Soon(lambda: call(connection)):
        cancelled(connection)


def cancel_inside_a_transaction():
    with connect() as connection:
        with connection.transaction(force_rollback=True):
            connection.execute("select 1")
            try:
                with Soon(connection.cancel), connection.transaction():
                    connection.execute("select pg_sleep(60)")
            except errors.QueryCanceled:
                pass
            else:
                raise AssertionError("slept on")
            same(connection.execute("select 'same transaction'").fetchone(), ("same transaction",))


def cancel_of_an_idle_session_hits_nobody():
    with connect() as idle, connect() as busy:
        same(idle.execute("select 1").fetchone(), (1,))
        with Soon(idle.cancel):
            busy.execute("select pg_sleep(1)")
        same(idle.execute("select 'after'").fetchone(), ("after",))


def cancel_hits_no_later_statement():
    """The server ends a cancel's connection once the signal is sent, so what is sent after that end can't be hit.

    The statement meant may be over before; then nothing must be cancelled at all.
    """
    with connect(prepare_threshold=None) as connection:
        late = 0
        for _ in range(30):
            with connection.transaction(force_rollback=True):
                canceller = threading.Thread(target=connection.cancel)
                canceller.start()
                try:
                    with connection.transaction():
                        connection.execute("select pg_sleep(0.0005)")
                except errors.QueryCanceled:
                    pass
                canceller.join()
                try:
                    with connection.transaction():
                        connection.execute("select pg_sleep(0.01)")
                except (errors.QueryCanceled, errors.InFailedSqlTransaction):
                    late += 1
        same(late, 0)


def cancelled(connection):
    with Within(15):
        try:
            connection.execute("select pg_sleep(60)")
        except errors.QueryCanceled:
            pass
        else:
            raise AssertionError("slept on")
    same(connection.execute("select 'after'").fetchone(), ("after",))


def server_side_cursor():
    with connect() as connection, connection.transaction():
        with connection.cursor(name="pieces") as cursor:
            cursor.itersize = 100
            cursor.execute("select generate_series(1, 1234)")
            same(sum(row[0] for row in cursor), 1234 * 1235 // 2)


def rows_one_by_one():
    with connect() as connection, connection.cursor(row_factory=dict_row) as cursor:
        total = sum(row["n"] for row in cursor.stream("select generate_series(1, %s) as n", [20000]))
        same(total, 200010000)


def notification():
    with connect() as listener, connect() as sender:
        listener.execute(f"listen {UNIQUE}")
        sender.execute(f"notify {UNIQUE}, 'news'")
        notes = [note.payload for note in listener.notifies(timeout=10, stop_after=1)]
        same(notes, ["news"])


def notice():
    heard = []
    with connect() as connection:
        connection.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))
        connection.execute("do $$ begin raise notice 'hello'; end $$")
    same(heard, ["hello"])


def settings_are_kept():
    with connect(options="-c statement_timeout=54321", application_name="psycopg-kept") as connection:
        connection.execute("set work_mem = '9MB'")
        connection.execute("select set_config('app.tenant', 'seven', false)")
        for _ in range(3):
            with connection.transaction():
                connection.execute("select 1")
        found = connection.execute("select current_setting('statement_timeout'), current_setting('application_name'),"
                                   " current_setting('work_mem'), current_setting('app.tenant')").fetchone()
        same(found, ("54321ms", "psycopg-kept", "9MB", "seven"))


def many_sessions():
    """More sessions than database connections, each with its own answers."""
    wrong = []

    def session(number):
        try:
            with connect(prepare_threshold=None) as connection:
                for round_ in range(10):
                    with connection.transaction():
                        connection.execute("select pg_sleep(0.002)")
                        same(connection.execute("select %s::int, %s::int", [number, round_]).fetchone(),
                             (number, round_))
        except Exception as error:  # noqa: BLE001 - told below
            wrong.append(error)

    threads = [threading.Thread(target=session, args=[number]) for number in range(4 * CONNECTIONS_MAX)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]


def async_connection():
    async def both():
        async with await psycopg.AsyncConnection.connect(autocommit=True) as connection:
            sleeper = asyncio.create_task(connection.execute("select pg_sleep(60)"))
            await asyncio.sleep(0.5)
            await connection.cancel_safe(timeout=10)
            try:
                await sleeper
            except errors.QueryCanceled:
                pass
            else:
                raise AssertionError("slept on")
            return await (await connection.execute("select %s", ["after"])).fetchone()

    with Within(15):
        same(asyncio.run(both()), ("after",))


def leaves_inside_a_transaction():
    name = f"{UNIQUE}_left"
    with connect() as watcher:
        watcher.execute(f"create table {name} (id int)")
        connection = psycopg.connect()
        connection.execute(f"insert into {name} values (1)")
        connection.pgconn.finish()
        end = time.monotonic() + 10
        while watcher.execute("select count(*) from pg_locks where relation = %s::regclass"
                              " and pid <> pg_backend_pid()", [name]).fetchone() != (0,):
            assert time.monotonic() < end, "the transaction of the client that left is still open"
            time.sleep(0.05)
        same(watcher.execute(f"select count(*) from {name}").fetchone(), (0,))
        watcher.execute(f"drop table {name}")


def main():
    checks = Checks()
    for name, test, *arguments in [
        ("login", login),
        ("wrong password", wrong_password),
        ("parameters, text results", parameters, False),
        ("parameters, binary results", parameters, True),
        ("large parameter and row", large_parameter_and_row),
        ("prepares by itself", prepares_by_itself),
        ("prepares at once and forgets", prepares_at_once_and_forgets),
        ("the same statement by two sessions", the_same_statement_by_two_sessions),
        ("pipeline", pipeline),
        ("pipeline in a transaction", pipeline_in_a_transaction),
        ("pipeline with an error", pipeline_with_an_error),
        ("executemany", executemany),
        ("copy in and out, text", copy, False),
        ("copy in and out, binary", copy, True),
        ("copy in given up", copy_in_given_up),
        ("copy out given up", copy_out_given_up),
        ("commit, rollback, savepoint", transaction),
        ("transactions without autocommit", transactions_without_autocommit),
        ("error, then goes on", error_then_goes_on),
        ("cancel", cancel, psycopg.Connection.cancel),
        ("cancel over a connection like its own", cancel, psycopg.Connection.cancel_safe),
        ("cancel inside a transaction", cancel_inside_a_transaction),
        ("cancel of an idle session hits nobody", cancel_of_an_idle_session_hits_nobody),
        ("cancel hits no later statement", cancel_hits_no_later_statement),
        ("server-side cursor", server_side_cursor),
        ("rows one by one", rows_one_by_one),
        ("notification", notification),
        ("notice", notice),
        ("settings are kept", settings_are_kept),
        ("many sessions", many_sessions),
        ("async connection", async_connection),
        ("leaves inside a transaction", leaves_inside_a_transaction),
    ]:
        checks.run(name, test, *arguments)


if __name__ == "__main__":
    main()
