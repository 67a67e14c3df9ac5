"""Django at its defaults but with CONN_MAX_AGE, over psycopg 3: a database alias a client, each with its TIME_ZONE, which
Django sets when it connects. QuerySet.iterator() reads through a cursor on the server.

With `hold`, iterator() is used outside a transaction: then Django declares its cursor WITH HOLD.
"""

import os
import sys

import django
from common import CLIENTS, NOON, SETTINGS, commits, everybody, run_threads
from django.conf import settings
from django.db import connections, models, transaction

HOLD = "hold" in sys.argv


def database(client):
    return {
        "ENGINE": "django.db.backends.postgresql", "HOST": os.environ["PGHOST"], "PORT": os.environ["PGPORT"],
        "USER": os.environ["PGUSER"], "PASSWORD": os.environ["PGPASSWORD"], "NAME": os.environ["PGDATABASE"],
        "CONN_MAX_AGE": 600, "CONN_HEALTH_CHECKS": True, "TIME_ZONE": client.zone,
        "OPTIONS": {"application_name": client.name, "options": f"-c search_path={client.schema}"}}


aliases = {client.name: database(client) for client in everybody()}
settings.configure(DATABASES={**aliases, "default": aliases["crowd-0"]}, USE_TZ=True)
django.setup()


class Box(models.Model):
    owner = models.IntegerField()
    note = models.TextField()

    class Meta:
        app_label, db_table = "crowd", "box"


class Ledger(models.Model):
    client = models.IntegerField(primary_key=True)
    round = models.IntegerField()

    class Meta:
        app_label, db_table = "crowd", '"public"."ledger"'


class RollBack(Exception):
    """Ends a transaction without its effects."""


def one(connection, *query):
    with connection.cursor() as cursor:
        cursor.execute(*query)
        return cursor.fetchone()


def connect(client):
    connection = connections[client.name]
    one(connection, "select set_config('app.client', %s, false)", [client.name])
    return connection


def turn(client, connection, number):
    connection.close_if_unusable_or_obsolete()  # as at the beginning of each request
    if HOLD:
        walk(client, chunk_size=2)
    try:
        with transaction.atomic(using=client.name):
            work(client, connection, number)
            if not commits(number):
                raise RollBack
    except RollBack:
        return
    client.committed += 1
    client.inserted += 1


def walk(client, **options):
    rows = [box.owner for box in Box.objects.using(client.name).filter(note="first").iterator(**options)]
    client.expect("rows of a cursor", rows, [client.number] * 3)


def work(client, connection, number):
    boxes = Box.objects.using(client.name)
    client.expect_settings(one(connection, SETTINGS))
    client.expect("a shared text under the own search_path", boxes.get(pk=number % 3 + 1).owner, client.number)
    client.expect("the own text", one(connection, f"select %s::int + {client.number * 1000}", [number]),
                  (client.number * 1000 + number,))
    client.expect("noon in the own zone", one(connection, NOON), (client.noon,))
    client.backends.add(one(connection, "select pg_backend_pid()")[0])
    Ledger.objects.using(client.name).create(client=client.number, round=number)
    with transaction.atomic(using=client.name):  # a savepoint
        client.expect("a key was returned", boxes.create(owner=client.number, note="later").pk > 3, True)
    client.expect("the own rows", boxes.filter(note="later").count(), client.inserted + 1)
    if not HOLD:
        walk(client)


assert len(aliases) == CLIENTS
run_threads(connect, turn, lambda connection: connection.close())
