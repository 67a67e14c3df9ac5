"""asyncpg through the proxy: binary throughout, and a statement with a name for nearly everything."""

import asyncio
import io
import os
import uuid
from datetime import datetime, timezone
from decimal import Decimal

import asyncpg

from checks import Checks, Within, same

CONNECTIONS_MAX = int(os.environ["CONNECTIONS_MAX"])
UNIQUE = f"asyncpg_{os.getpid()}"


class Connection:
    """`async with`, since a connection of asyncpg's own is no context manager."""

    def __init__(self, **options):
        self.options = options

    async def __aenter__(self):
        self.connection = await asyncpg.connect(timeout=10, **self.options)
        return self.connection

    async def __aexit__(self, *_):
        await self.connection.close(timeout=10)


async def raises(kind, coroutine):
    try:
        await coroutine
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


async def login():
    async with Connection() as connection:
        same(await connection.fetchval("select current_user"), "demo")
        same(connection._transport.get_extra_info("ssl_object") is not None, os.environ["PGSSLMODE"] != "disable")
        assert connection.get_server_version().major >= 15


async def wrong_password():
    await raises(asyncpg.InvalidPasswordError, asyncpg.connect(password="wrong", timeout=10))


async def simple_query():
    async with Connection() as connection:
        same(await connection.execute("select 1; select 2"), "SELECT 1")


async def parameters():
    values = (42, 2**62, "ü and '", b"\x00\xff\\", None, Decimal("12345.678900"), [1, None, 3], 1.5, True,
              uuid.UUID(int=7), datetime(2024, 2, 29, 12, 30, 15, 123456, timezone.utc))
    types = ("int4", "int8", "text", "bytea", "text", "numeric", "int4[]", "float8", "bool", "uuid", "timestamptz")
    query = "select " + ", ".join(f"${index}::{name}" for index, name in enumerate(types, 1))
    async with Connection() as connection:
        same(tuple(await connection.fetchrow(query, *values)), values)


async def without_a_statement_cache():
    async with Connection(statement_cache_size=0) as connection:
        for number in range(10):
            same(await connection.fetchval("select $1::int + 1", number), number + 1)
            async with connection.transaction():
                same(await connection.fetchval("select $1::text", "x"), "x")


async def prepared_statement():
    async with Connection() as connection:
        statement = await connection.prepare("select $1::int * 2 as twice")
        same(statement.get_attributes()[0].name, "twice")
        for number in range(20):
            same(await statement.fetchval(number), 2 * number)
        async with connection.transaction():
            same(await statement.fetchval(50), 100)
        same(await statement.fetchval(51), 102)


async def statement_cache_overflows():
    async with Connection(statement_cache_size=5) as connection:
        for round_ in range(3):
            for number in range(12):
                same(await connection.fetchval(f"select $1::int + {number}", round_), round_ + number)


async def type_of_its_own():
    async with Connection() as connection:
        await connection.execute(f"create type {UNIQUE}_mood as enum ('sad', 'happy')")
        try:
            same(await connection.fetchval(f"select $1::{UNIQUE}_mood", "happy"), "happy")
            same(await connection.fetchval(f"select array['sad', 'happy']::{UNIQUE}_mood[]"), ["sad", "happy"])
        finally:
            await connection.execute(f"drop type {UNIQUE}_mood")


async def executemany():
    async with Connection() as connection:
        await connection.execute(f"create table {UNIQUE}_many (id int, note text)")
        await connection.executemany(f"insert into {UNIQUE}_many values ($1, $2)",
                                     [(number, "n" * 200) for number in range(5000)])
        same(await connection.fetchval(f"select sum(id) from {UNIQUE}_many"), 12497500)
        await connection.execute(f"drop table {UNIQUE}_many")


async def copy():
    rows = [(number, f"line {number}\twith a tab") for number in range(5000)]
    async with Connection() as connection:
        await connection.execute(f"create table {UNIQUE}_copy (id int, note text)")
        same(await connection.copy_records_to_table(f"{UNIQUE}_copy", records=rows), "COPY 5000")
        same(await connection.copy_to_table(f"{UNIQUE}_copy", source=io.BytesIO(b"7000\tseven\n")), "COPY 1")
        output = io.BytesIO()
        await connection.copy_from_query(f"select * from {UNIQUE}_copy where id > $1 order by id", 4998, output=output)
        same(output.getvalue(), b"4999\tline 4999\\twith a tab\n7000\tseven\n")
        output = io.BytesIO()
        await connection.copy_from_table(f"{UNIQUE}_copy", output=output, format="binary")
        assert output.getvalue().startswith(b"PGCOPY\n\xff\r\n\0"), output.getvalue()[:20]
        await connection.execute(f"drop table {UNIQUE}_copy")


async def copy_in_that_fails():
    async with Connection() as connection:
        await connection.execute(f"create table {UNIQUE}_bad (id int)")
        await raises(asyncpg.InvalidTextRepresentationError, connection.copy_to_table(
            f"{UNIQUE}_bad", source=io.BytesIO(b"1\n" * 200000 + b"bad\n" + b"2\n" * 200000)))
        same(await connection.fetchval(f"select count(*) from {UNIQUE}_bad"), 0)
        await connection.execute(f"drop table {UNIQUE}_bad")


async def transaction():
    class GivenUp(Exception):
        pass

    async with Connection() as connection:
        await connection.execute(f"create table {UNIQUE}_tx (id int)")
        insert = f"insert into {UNIQUE}_tx values ($1)"
        async with connection.transaction():
            await connection.execute(insert, 1)
        try:
            async with connection.transaction():
                await connection.execute(insert, 2)
                raise GivenUp
        except GivenUp:
            pass
        async with connection.transaction(isolation="serializable"):
            try:
                async with connection.transaction():  # a savepoint
                    await connection.execute(insert, 3)
                    await connection.fetchval("select 1/0")
            except asyncpg.DivisionByZeroError:
                pass
            await connection.execute(insert, 4)
        same([row["id"] for row in await connection.fetch(f"select id from {UNIQUE}_tx order by id")], [1, 4])
        await connection.execute(f"drop table {UNIQUE}_tx")


async def error_then_goes_on():
    async with Connection() as connection:
        for _ in range(3):
            error = await raises(asyncpg.DivisionByZeroError, connection.fetchval("select $1::int / 0", 1))
            same(error.sqlstate, "22012")
            await raises(asyncpg.PostgresSyntaxError, connection.execute("selekt"))
            same(await connection.fetchval("select $1::text", "after"), "after")


async def cancel_by_timeout():
    """asyncpg sends a CancelRequest when its own timeout runs out, and waits for the outcome."""
    async with Connection() as connection:
        with Within(15):
            await raises(asyncio.TimeoutError, connection.fetchval("select pg_sleep(60)", timeout=0.5))
            same(await connection.fetchval("select 'after'"), "after")


async def cancel_of_a_task():
    async with Connection() as connection:
        with Within(15):
            task = asyncio.create_task(connection.execute("select pg_sleep(60)"))
            await asyncio.sleep(0.5)
            task.cancel()
            await raises(asyncio.CancelledError, task)
            same(await connection.fetchval("select 'after'"), "after")


async def cursor():
    async with Connection() as connection, connection.transaction():
        total = 0
        async for row in connection.cursor("select generate_series(1, $1::int)", 1234, prefetch=100):
            total += row[0]
        same(total, 1234 * 1235 // 2)


async def notification():
    heard = asyncio.Queue()
    async with Connection() as listener, Connection() as sender:
        def hear(*arguments):
            heard.put_nowait(arguments[3])

        await listener.add_listener(UNIQUE, hear)
        await sender.execute(f"notify {UNIQUE}, 'news'")
        same(await asyncio.wait_for(heard.get(), 10), "news")
        await listener.remove_listener(UNIQUE, hear)


async def settings_are_kept():
    async with Connection(server_settings={"application_name": "asyncpg-kept", "jit": "off"}) as connection:
        await connection.execute("set work_mem = '9MB'")
        for _ in range(3):
            async with connection.transaction():
                await connection.execute("select 1")
        same([await connection.fetchval(f"show {name}") for name in ("application_name", "jit", "work_mem")],
             ["asyncpg-kept", "off", "9MB"])


async def pool_with_reset():
    """The pool resets a connection with several statements in one query each time it is given back."""
    async with asyncpg.create_pool(min_size=1, max_size=CONNECTIONS_MAX - 2) as pool:
        async def work(number):
            async with pool.acquire() as connection:
                return await connection.fetchval("select $1::int", number)

        same(await asyncio.gather(*map(work, range(200))), list(range(200)))


async def many_sessions():
    """More sessions than database connections. With no statement cache nothing pins."""

    async def session(number):
        async with Connection(statement_cache_size=0) as connection:
            for round_ in range(10):
                async with connection.transaction():
                    await connection.execute("select pg_sleep(0.002)")
                    same(tuple(await connection.fetchrow("select $1::int, $2::int", number, round_)), (number, round_))

    await asyncio.gather(*map(session, range(4 * CONNECTIONS_MAX)))


def main():
    checks = Checks()
    for name, test in [
        ("login", login),
        ("wrong password", wrong_password),
        ("simple query", simple_query),
        ("parameters", parameters),
        ("without a statement cache", without_a_statement_cache),
        ("prepared statement", prepared_statement),
        ("statement cache overflows", statement_cache_overflows),
        ("type of its own", type_of_its_own),
        ("executemany", executemany),
        ("copy in and out", copy),
        ("copy in that fails", copy_in_that_fails),
        ("commit, rollback, savepoint", transaction),
        ("error, then goes on", error_then_goes_on),
        ("cancel by timeout", cancel_by_timeout),
        ("cancel of a task", cancel_of_a_task),
        ("cursor", cursor),
        ("notification", notification),
        ("settings are kept", settings_are_kept),
        ("pool with reset", pool_with_reset),
        ("many sessions", many_sessions),
    ]:
        checks.run(name, lambda test=test: asyncio.run(asyncio.wait_for(test(), 60)))


if __name__ == "__main__":
    main()
