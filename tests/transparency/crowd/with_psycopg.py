"""psycopg 3 at its defaults: a transaction begins by itself, statements are prepared after five executions.

With `pipeline`, each transaction's statements go in one pipeline.
"""

import sys

import psycopg
from common import NOON, SETTINGS, commits, run_threads


def connect(client):
    connection = psycopg.connect(application_name=client.name, options=f"-c search_path={client.schema}")
    connection.execute("select set_config('app.client', %s, false)", [client.name])
    connection.execute(f"set timezone to '{client.zone}'")
    connection.commit()
    return connection


def one(connection, *query):
    return connection.execute(*query).fetchone()


def turn(client, connection, number):
    client.expect_settings(one(connection, SETTINGS))
    client.expect("a shared text under the own search_path",
                  one(connection, "select owner from box where id = %s", [number % 3 + 1]), (client.number,))
    client.expect("the own text", one(connection, f"select %s::int + {client.number * 1000}", [number]),
                  (client.number * 1000 + number,))
    client.expect("noon in the own zone", one(connection, NOON), (client.noon,))
    client.backends.add(one(connection, "select pg_backend_pid()")[0])
    with connection.cursor("walk") as cursor:  # on the server, for this transaction
        cursor.itersize = 2
        cursor.execute("select owner from box where note = 'first'")
        client.expect("rows of a cursor", list(cursor), [(client.number,)] * 3)
    write(client, connection, number)


def write(client, connection, number):
    connection.execute("insert into public.ledger values (%s, %s)", [client.number, number])
    connection.execute("insert into box (owner, note) values (%s, 'later')", [client.number])
    client.expect("the own rows", one(connection, "select count(*) from box where note = 'later'"),
                  (client.inserted + 1,))
    finish(client, connection, number)


def finish(client, connection, number):
    if commits(number):
        connection.commit()
        client.committed += 1
        client.inserted += 1
    else:
        connection.rollback()


def turn_in_pipeline(client, connection, number):
    with connection.pipeline():
        settings = connection.execute(SETTINGS)
        owner = connection.execute("select owner from box where id = %s", [number % 3 + 1])
        own = connection.execute(f"select %s::int + {client.number * 1000}", [number])
        noon = connection.execute(NOON)
        backend = connection.execute("select pg_backend_pid()")
        connection.execute("insert into public.ledger values (%s, %s)", [client.number, number])
        connection.execute("insert into box (owner, note) values (%s, 'later')", [client.number])
        rows = connection.execute("select count(*) from box where note = 'later'")
        finish(client, connection, number)
    client.expect_settings(settings.fetchone())
    client.expect("a shared text under the own search_path", owner.fetchone(), (client.number,))
    client.expect("the own text", own.fetchone(), (client.number * 1000 + number,))
    client.expect("noon in the own zone", noon.fetchone(), (client.noon,))
    client.expect("the own rows", rows.fetchone(), (client.inserted + (0 if commits(number) else 1),))
    client.backends.add(backend.fetchone()[0])


run_threads(connect, turn_in_pipeline if "pipeline" in sys.argv else turn, lambda connection: connection.close())
