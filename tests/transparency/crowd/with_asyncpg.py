"""asyncpg at its defaults: every statement is prepared and cached; its pool resets a session at each release.

The reset is `SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;`: what the session asked for at login is
there again after it, what it has set since is not. A pool a client, so that each has its own login.
"""

import asyncio

import asyncpg
from common import NOON, SETTINGS, commits, run_tasks


async def connect(client):
    pool = await asyncpg.create_pool(
        min_size=1, max_size=1, server_settings={
            "application_name": client.name, "search_path": client.schema, "timezone": client.zone})
    async with pool.acquire() as connection:
        await connection.execute("select set_config('app.client', $1, false)", client.name)
    return pool


async def turn(client, pool, number):
    async with pool.acquire() as connection:
        client.expect("app.client after RESET ALL",
                      await connection.fetchval("select current_setting('app.client', true)") or "", "")
        await connection.execute("select set_config('app.client', $1, false)", client.name)
        transaction = connection.transaction()
        await transaction.start()
        await read(client, connection, number)
        await connection.execute("insert into public.ledger values ($1, $2)", client.number, number)
        await connection.execute("insert into box (owner, note) values ($1, 'later')", client.number)
        client.expect("the own rows", await connection.fetchval("select count(*) from box where note = $1", "later"),
                      client.inserted + 1)
        if commits(number):
            await transaction.commit()
            client.committed += 1
            client.inserted += 1
        else:
            await transaction.rollback()
        client.expect("app.client", await connection.fetchval("select current_setting('app.client')"), client.name)


async def read(client, connection, number):
    client.expect_settings(await connection.fetchrow(SETTINGS))
    client.expect("a shared text under the own search_path",
                  await connection.fetchval("select owner from box where id = $1", number % 3 + 1), client.number)
    client.expect("the own text", await connection.fetchval(f"select $1::int + {client.number * 1000}", number),
                  client.number * 1000 + number)
    client.expect("noon in the own zone", await connection.fetchval(NOON), client.noon)
    # A type it has to ask the server about, which it does with jit off for the time being.
    client.expect("an enum", await connection.fetchval("select array[$1::public.mood]", "busy"), ["busy"])
    rows = [row["owner"] async for row in connection.cursor("select owner from box where note = $1", "first", prefetch=2)]
    client.expect("rows of a cursor", rows, [client.number] * 3)
    client.backends.add(await connection.fetchval("select pg_backend_pid()"))


asyncio.run(run_tasks(connect, turn, lambda pool: pool.close()))
