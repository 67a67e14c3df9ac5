"""SQLAlchemy at its defaults, over psycopg or asyncpg: its statements at the first connection, a rollback at each return
to its pool. An engine a client, with its own login; a transaction is a checkout.
"""

import asyncio
import os
import sys

import sqlalchemy
from common import NOON, SETTINGS, commits, run_tasks, run_threads
from sqlalchemy import Column, Integer, MetaData, Table, Text, func, insert, select, text
from sqlalchemy.ext.asyncio import create_async_engine

box = Table("box", MetaData(), Column("id", Integer, primary_key=True), Column("owner", Integer), Column("note", Text))
ledger = Table("ledger", MetaData(), Column("client", Integer), Column("round", Integer), schema="public")


def url(dialect):
    return sqlalchemy.URL.create(
        f"postgresql+{dialect}", os.environ["PGUSER"], os.environ["PGPASSWORD"], os.environ["PGHOST"],
        int(os.environ["PGPORT"]), os.environ["PGDATABASE"])


def prepare_sessions(engine, client):
    """What applications do at each connection of their pool."""
    @sqlalchemy.event.listens_for(engine, "connect")
    def on_connect(connection, _):
        cursor = connection.cursor()
        cursor.execute(f"set timezone to '{client.zone}'")
        cursor.execute(f"set app.client to '{client.name}'")
        cursor.close()
        connection.commit()


def connect(client):
    engine = sqlalchemy.create_engine(
        url("psycopg"),
        connect_args={"application_name": client.name, "options": f"-c search_path={client.schema}"})
    prepare_sessions(engine, client)
    with engine.connect():
        return engine


def turn(client, engine, number):
    with engine.connect() as connection:
        work(client, connection, number)
        if commits(number):
            connection.commit()
            client.committed += 1
            client.inserted += 1
        # Else nothing: the pool rolls back.


def work(client, connection, number):
    client.expect_settings(connection.execute(text(SETTINGS)).one())
    client.expect("a shared text under the own search_path",
                  connection.scalar(select(box.c.owner).where(box.c.id == number % 3 + 1)), client.number)
    client.expect("the own text",
                  connection.scalar(text(f"select cast(:n as int) + {client.number * 1000}"), {"n": number}),
                  client.number * 1000 + number)
    client.expect("noon in the own zone", connection.scalar(text(NOON)), client.noon)
    client.backends.add(connection.scalar(select(func.pg_backend_pid())))
    connection.execute(insert(ledger).values(client=client.number, round=number))
    made = connection.execute(insert(box).values(owner=client.number, note="later"))
    client.expect("a key was returned", made.inserted_primary_key[0] > 3, True)
    client.expect("the own rows", connection.scalar(select(func.count()).where(box.c.note == "later")),
                  client.inserted + 1)
    streamed = connection.execution_options(stream_results=True).execute(select(box.c.owner).where(box.c.note == "first"))
    client.expect("rows of a cursor", [row.owner for row in streamed], [client.number] * 3)


async def connect_async(client):
    engine = create_async_engine(url("asyncpg"), connect_args={
        "server_settings": {"application_name": client.name, "search_path": client.schema}})
    prepare_sessions(engine.sync_engine, client)
    async with engine.connect():
        return engine


async def turn_async(client, engine, number):
    async with engine.connect() as connection:
        await connection.run_sync(lambda sync: work(client, sync, number))
        if commits(number):
            await connection.commit()
            client.committed += 1
            client.inserted += 1


if sys.argv[1] == "asyncpg":
    asyncio.run(run_tasks(connect_async, turn_async, lambda engine: engine.dispose()))
else:
    run_threads(connect, turn, lambda engine: engine.dispose())
