"""What the programs in Python have in common: who a client is, what it counts, how it speaks with ../crowd.py."""

import asyncio
import os
import sys
import threading

CLIENTS = int(os.environ["CLIENTS"])
ROUNDS = int(os.environ["ROUNDS"])
# What midnight is, is decided when the text is prepared; how noon is written, when it is executed.
NOON = ("select extract(hour from timestamptz '2026-01-01 12:00+00' - timestamptz '2026-01-01 00:00')"
        " || ' ' || (timestamptz '2026-01-01 12:00+00')::text")


class Client:
    """One client: what is its own, and what it has seen."""

    def __init__(self, number):
        self.number = number
        self.name = f"crowd-{number}"
        self.schema = f"crowd_{number}"
        self.hours = number % 11 + 1
        self.zone = f"Etc/GMT+{self.hours}"  # POSIX: west is positive
        self.noon = f"{12 - self.hours} 2026-01-01 {12 - self.hours:02}:00:00-{self.hours:02}"
        self.committed = 0
        self.inserted = 0
        self.backends = set()
        self.stopped = False

    def expect(self, what, got, wanted):
        """Tells of an answer that is not this client's own."""
        if got != wanted:
            tell(f"WRONG {self.name}: {what}: {got!r} instead of {wanted!r}")

    def expect_settings(self, got):
        self.expect("application_name, search_path, TimeZone, app.client", tuple(got),
                    (self.name, self.schema, self.zone, self.name))

    def fail(self, error):
        self.stopped = True
        tell(f"ERROR {self.name}: {type(error).__name__}: {' '.join(str(error).split())}")


def tell(line):
    """In one write: many threads tell."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def commits(turn):
    """Every third transaction is rolled back."""
    return turn % 3 != 2


SETTINGS = ("select current_setting('application_name'), current_setting('search_path'),"
            " current_setting('TimeZone'), current_setting('app.client')")


def everybody():
    return [Client(number) for number in range(CLIENTS)]


def pause(word):
    """Says how far we are and waits to be told to go on."""
    tell(word)
    sys.stdin.readline()


def sum_up(clients):
    met = sum(len(client.backends) for client in clients) / len(clients)
    return f"done {sum(client.committed for client in clients)} {met:.1f}"


def run_threads(connect, turn, close):
    """A thread a client. `connect` makes a session, `turn` runs one transaction in it, all at the same time."""
    clients = everybody()
    ready, going = threading.Barrier(CLIENTS + 1), threading.Barrier(CLIENTS + 1)
    done, leaving = threading.Barrier(CLIENTS + 1), threading.Barrier(CLIENTS + 1)

    def live(client):
        session = attempt(client, connect, client)
        ready.wait()
        going.wait()
        for number in range(ROUNDS):
            if not client.stopped:
                attempt(client, turn, client, session, number)
        done.wait()
        leaving.wait()
        if session is not None:
            attempt(client, close, session)

    threads = [threading.Thread(target=live, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    ready.wait()
    pause("ready")
    going.wait()
    done.wait()
    pause(sum_up(clients))
    leaving.wait()
    for thread in threads:
        thread.join()


def attempt(client, work, *arguments):
    try:
        return work(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, the client got it
        client.fail(error)
        return None


async def run_tasks(connect, turn, close):
    """The same with a task a client."""
    clients = everybody()

    async def attempt_async(client, work, *arguments):
        try:
            return await work(*arguments)
        except Exception as error:  # noqa: BLE001
            client.fail(error)
            return None

    async def live(client, session):
        for number in range(ROUNDS):
            if not client.stopped:
                await attempt_async(client, turn, client, session, number)

    sessions = await asyncio.gather(*(attempt_async(client, connect, client) for client in clients))
    pause("ready")
    await asyncio.gather(*map(live, clients, sessions))
    pause(sum_up(clients))
    for client, session in zip(clients, sessions):
        if session is not None:
            await attempt_async(client, close, session)
