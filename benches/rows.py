"""What is measured: a row of the report each. A row yields (measure, unit, target, value), round by round.

Targets take turns within a round (A B C A B C …), so that what else the machine does meets all of them alike.
"""

import contextlib
import multiprocessing
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

from harness import wait_until
from harness.pgbench import Pgbench, pgbench
from harness.wire import Client, message, text

from targets import POOL_SIZE, cpu_seconds, rss_kb

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
SECONDS = int(os.environ.get("BENCH_SECONDS", "4"))
MICRO = 1e6

CLIENT_COUNTS = (16, 64)
PROTOCOLS = ("simple", "extended")
SYSCALL_CLIENTS = 16
SYSCALL_TRANSACTIONS = 250  # each client
LATENCY_PERCENTILES = (50, 95, 99)
LATENCY_LOADS = {"1 client": ("-c", 1), "16 clients, 2000/s": ("-c", 16, "-R", 2000)}
LOGIN_WORKERS = 4
IDLE_CLIENTS = 2000
BULK = {"rows of 8 kB": (8_000, 65_536), "rows of 100 B": (100, 2_500_000)}
DRAIN_BYTES = 1 << 20
READY = message(b"Z", b"I")


class CpuOf:
    """The CPU seconds a target's process uses within `with`; None if there is none."""

    def __init__(self, target):
        self.pid = target.pid
        self.seconds = None

    def __enter__(self):
        self.start = cpu_seconds(self.pid) if self.pid else None
        return self

    def __exit__(self, *_):
        if self.pid:
            self.seconds = cpu_seconds(self.pid) - self.start


def checked(run):
    """A benchmark with errors measures something else."""
    if run.errors:
        raise RuntimeError(f"pgbench: {run.errors[:3]}")
    if not run.transactions:
        raise RuntimeError("pgbench: its time was up before it had logged in; BENCH_SECONDS is too few")
    return run


def turns(targets):
    for _ in range(ROUNDS):
        yield from targets


def tps(targets):
    for protocol in PROTOCOLS:
        for clients in CLIENT_COUNTS:
            for target in turns(targets):
                yield from throughput(target, protocol, clients)
    # For information: a session that prepares by name needs its statements to follow it, which PgBouncer learnt in
    # 1.21 only. No more clients than backends: nobody waits for a pinned one.
    for target in turns([target for target in targets if target.name != "pgbouncer"]):
        yield from throughput(target, "prepared", min(CLIENT_COUNTS))


def throughput(target, protocol, clients):
    with CpuOf(target) as cpu:
        run = checked(pgbench(target, "-S", "-M", protocol, "-c", clients, "-T", SECONDS))
    what = f"select, {protocol}, {clients} clients"
    yield f"{what}: throughput", "tps", target.name, run.rate
    if cpu.seconds is not None:
        yield f"{what}: CPU of the proxy", "µs/tx", target.name, cpu.seconds / run.transactions * MICRO


def syscalls(targets):
    if not shutil.which("strace"):
        return
    for protocol in PROTOCOLS:
        for target in targets:
            if target.pid:
                # The difference of two runs has no logins in it.
                few = count_calls(target, protocol, 1)
                many = count_calls(target, protocol, 1 + SYSCALL_TRANSACTIONS)
                transactions = SYSCALL_CLIENTS * SYSCALL_TRANSACTIONS
                calls = {name: (many[name] - few.get(name, 0)) / transactions for name in many}
                yield f"select, {protocol}: system calls", "calls/tx", target.name, sum(calls.values())
                for name in sorted(calls, key=calls.get, reverse=True):
                    if calls[name] >= 0.05:
                        yield f"    {name}, {protocol}", "calls/tx", target.name, calls[name]


def count_calls(target, protocol, transactions):
    """The system calls of a target while pgbench runs, by name."""
    with tempfile.NamedTemporaryFile("r") as table:
        tracer = subprocess.Popen(
            ["strace", "-c", "-f", "-o", table.name, "-p", str(target.pid)], start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: is_traced(target.pid, tracer), "strace")
            checked(pgbench(target, "-S", "-M", protocol, "-c", SYSCALL_CLIENTS, "-t", transactions))
        finally:
            tracer.terminate()
            tracer.wait(30)
        fields = [line.split() for line in table.read().splitlines()]
    return {row[-1]: int(row[3]) for row in fields if len(row) >= 5 and row[3].isdigit() and row[-1] != "total"}


def is_traced(pid, tracer):
    if tracer.poll() is not None:
        raise RuntimeError("strace could not attach: is ptrace allowed?")
    tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/status")
    return all("TracerPid:\t0\n" not in task.read_text() for task in tasks)


def latency(targets):
    for load, options in LATENCY_LOADS.items():
        for target in turns(targets):
            for percentile, value in percentiles(target, options):
                yield f"select, {load}: P{percentile}", "µs", target.name, value


def percentiles(target, options):
    """Of the time a transaction takes from being due to being done, from pgbench's log of each of them."""
    with tempfile.TemporaryDirectory() as folder:
        checked(pgbench(target, "-S", *options, "-T", SECONDS, "-l", f"--log-prefix={folder}/log"))
        times = sorted(int(line.split()[2]) for path in pathlib.Path(folder).iterdir()
                       for line in path.read_text().splitlines())
    for percentile in LATENCY_PERCENTILES:
        yield percentile, times[min(len(times) - 1, len(times) * percentile // 100)]


def logins(targets):
    for target in turns(targets):
        with CpuOf(target) as cpu, multiprocessing.get_context("fork").Pool(LOGIN_WORKERS) as workers:
            start = time.monotonic()
            done = sum(workers.map(log_in_for, [(target.host, target.port, SECONDS)] * LOGIN_WORKERS, 1))
            took = time.monotonic() - start
        yield f"logins, {LOGIN_WORKERS} at once", "logins/s", target.name, done / took
        if cpu.seconds is not None:
            yield "CPU of the proxy for a login", "µs/login", target.name, cpu.seconds / done * MICRO


class Address:
    def __init__(self, host, port):
        self.host, self.port = host, port


def log_in_for(work):
    """Logs in, out and in again; the client's own hashing is done once. Returns how many times."""
    host, port, seconds = work
    end, done = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        Client(Address(host, port)).close()
        done += 1
    return done


def idle(targets):
    for target in targets:
        if target.pid:
            with contextlib.ExitStack() as clients:
                clients.enter_context(Client(target)).query("select 1")
                before = rss_kb(target.pid)
                for _ in range(IDLE_CLIENTS):
                    clients.enter_context(Client(target))
                grown = (rss_kb(target.pid) - before) * 1024
            yield f"memory of an idle client (of {IDLE_CLIENTS})", "bytes", target.name, grown / IDLE_CLIENTS


def bulk(targets):
    for name, (row_bytes, rows) in BULK.items():
        sql = f"copy (select repeat('x', {row_bytes}) from generate_series(1, {rows})) to stdout"
        for target in turns(targets):
            with Client(target) as client, CpuOf(target) as cpu:
                start = time.monotonic()
                gigabytes = drain(client, sql) / 1e9
                took = time.monotonic() - start
            yield f"COPY out, {name}: throughput", "GB/s", target.name, gigabytes / took
            if cpu.seconds is not None:
                yield f"COPY out, {name}: CPU of the proxy", "s/GB", target.name, cpu.seconds / gigabytes


def drain(client, sql):
    """Reads an answer to its end as fast as can be; returns its bytes."""
    client.send(message(b"Q", text(sql)))
    buffer, total, tail = bytearray(DRAIN_BYTES), 0, b""
    while tail != READY:
        got = client.socket.recv_into(buffer)
        if not got:
            raise ConnectionError("cut off")
        total += got
        tail = (tail + bytes(buffer[max(0, got - len(READY)):got]))[-len(READY):]
    return total


assert min(CLIENT_COUNTS) <= POOL_SIZE, "the prepared row would wait for pinned connections"
ROWS = {row.__name__: row for row in (tps, syscalls, latency, logins, idle, bulk)}
