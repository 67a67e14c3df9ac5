"""A gigabyte passes through in constant memory, whichever way it goes and whoever is slow."""

import struct
import time

from harness import Postgres, Proxy
from harness.observe import Every, Growth
from harness.wire import Client, message, text

GROWTH_MAX_KB = 16 * 1024
LOOK_EVERY_S = 0.02
POOL = {"max_connections": 4}
ROW_BYTES = 8_000
ROWS = 131_072  # times ROW_BYTES: 1.05 GB
ROWS_A_CHUNK = 32
PAUSES = 20
PAUSE_S = 0.15
PARAMETER_BYTES = 512 * 1024 * 1024
ONE_ROW_BYTES = 900_000_000
CHUNK_BYTES = 1 << 20


class Slow:
    """Pauses now and then in the first half of a stream, and not at all in the second."""

    def __init__(self, bytes_total):
        self.step = bytes_total // 2 // PAUSES
        self.next, self.left = self.step, PAUSES

    def __call__(self, bytes_so_far):
        if self.left and bytes_so_far >= self.next:
            self.left, self.next = self.left - 1, bytes_so_far + self.step
            time.sleep(PAUSE_S)


def constant_memory(say, name, proxy, stream):
    """Runs `stream` with a client and checks how much the proxy grew meanwhile."""
    with Client(proxy) as client:
        client.query("select 1")
        growth = Growth(proxy)
        start = time.monotonic()
        with Every(LOOK_EVERY_S, growth.look):
            stream(client)
        took = time.monotonic() - start
        assert client.value("select 'still here'") == "still here"
    say(f"{name}: {took:.1f} s, the proxy grew from {growth.start_kb} kB by at most {growth.kb} kB")
    assert growth.kb < GROWTH_MAX_KB, f"{name}: the proxy grew by {growth.kb} kB"


def copy_out(client):
    client.send(message(b"Q", text(
        f"copy (select repeat('x', {ROW_BYTES}) from generate_series(1, {ROWS})) to stdout")))
    counts, sizes = client.skim(Slow(ROWS * ROW_BYTES))
    assert (counts[b"d"], sizes[b"d"]) == (ROWS, ROWS * (ROW_BYTES + 1)), (counts, sizes)


def test_copy_out_to_a_slow_reader(say):
    """1 GB of COPY … TO STDOUT, read haltingly."""
    with Postgres() as postgres, Proxy(postgres, pool=POOL) as proxy:
        constant_memory(say, "copy out", proxy, copy_out)


def select(client):
    client.send(message(b"Q", text(f"select repeat('x', {ROW_BYTES}) from generate_series(1, {ROWS})")))
    counts, sizes = client.skim(Slow(ROWS * ROW_BYTES))
    assert (counts[b"D"], sizes[b"D"]) == (ROWS, ROWS * (ROW_BYTES + 6)), (counts, sizes)


def test_rows_to_a_slow_reader(say):
    """1 GB of rows of one SELECT, read haltingly."""
    with Postgres() as postgres, Proxy(postgres, pool=POOL) as proxy:
        constant_memory(say, "rows", proxy, select)


# Sleeps on some rows, and keeps of each only its length.
SLOW_TABLE = f"""
create table slow (payload text);
create sequence seen;
create function slowly() returns trigger language plpgsql as $$ begin
    if nextval('seen') % {ROWS // PAUSES} = 0 then perform pg_sleep({PAUSE_S}); end if;
    new.payload := length(new.payload)::text;
    return new;
end $$;
create trigger slowly before insert on slow for each row execute function slowly();
"""


def copy_in(client):
    client.send(message(b"Q", text("copy slow from stdin")))
    client.read_until(b"G")
    chunk = message(b"d", (b"x" * ROW_BYTES + b"\n")) * ROWS_A_CHUNK
    for _ in range(ROWS // ROWS_A_CHUNK):
        client.send(chunk)
    client.send(message(b"c"))
    assert client.read_until(b"C") == text(f"COPY {ROWS}")
    client.read_until(b"Z")
    assert client.query("select count(*), sum(payload::int) from slow") == [[str(ROWS), str(ROWS * ROW_BYTES)]]


def test_copy_in_to_a_slow_server(say):
    """1 GB of COPY … FROM STDIN into a table whose trigger dawdles."""
    with Postgres() as postgres, Proxy(postgres, pool=POOL) as proxy:
        postgres.sql(SLOW_TABLE)
        constant_memory(say, "copy in", proxy, copy_in)


def parameter(client):
    client.send(message(b"P", text(""), text("select length($1)"), struct.pack("!hi", 1, 25)))
    length = 4 + 2 + 2 + 2 + 4 + PARAMETER_BYTES + 2  # of a Bind with empty names, no formats, one value
    client.send(b"B", struct.pack("!i", length), text(""), text(""), struct.pack("!hhi", 0, 1, PARAMETER_BYTES))
    chunk = b"x" * CHUNK_BYTES
    for _ in range(PARAMETER_BYTES // CHUNK_BYTES):
        client.send(chunk)
    client.send(struct.pack("!h", 0), message(b"E", text(""), struct.pack("!i", 0)), message(b"S"))
    assert client.read_until(b"D")[6:] == str(PARAMETER_BYTES).encode()
    client.read_until(b"Z")


def test_one_huge_parameter(say):
    """512 MB in one parameter of one statement."""
    with Postgres() as postgres, Proxy(postgres, pool=POOL) as proxy:
        constant_memory(say, "parameter", proxy, parameter)


def one_row(client):
    client.send(message(b"Q", text(f"select repeat('x', {ONE_ROW_BYTES})")))
    counts, sizes = client.skim(Slow(ONE_ROW_BYTES))
    assert (counts[b"D"], sizes[b"D"]) == (1, ONE_ROW_BYTES + 6), (counts, sizes)


def test_one_huge_row(say):
    """A single row of 900 MB, read haltingly."""
    with Postgres() as postgres, Proxy(postgres, pool=POOL) as proxy:
        constant_memory(say, "one row", proxy, one_row)
