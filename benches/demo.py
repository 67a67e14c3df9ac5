#!/usr/bin/env python3
"""The demo: hundreds of client sessions over a bounded number of database connections, both numbers in sight.

Starts a throwaway PostgreSQL and the proxy with a secrets file, says how to reach them, and drives 500 pgbench sessions
through at most 20 database connections, until it is stopped.

    DEMO_SECONDS=20   stops by itself
    DEMO_LOAD=0       drives no load
"""

import contextlib
import os
import pathlib
import signal
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

from harness import Postgres, Proxy, raise_descriptor_limit  # noqa: E402
from harness.observe import Backends  # noqa: E402
from harness.pgbench import Pgbench, initialize  # noqa: E402

BACKENDS_MAX = 20
PROTOCOLS = ("simple", "extended")
CLIENTS_EACH = 250
SCALE = 20
# A tenth are TPC-B transactions of seven statements, the rest single reads.
SCRIPTS = ("-b", "tpcb-like@1", "-b", "select-only@9")
ROUND_SECONDS = 3600
LOAD_END_S = 60
DESCRIPTORS = 2048


class Stop:
    """Set by a signal. A handler that raises could fall between the start of a process and the note of it."""

    def __init__(self):
        self.event = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: self.event.set())

    def asked(self):
        return self.event.is_set()

    def wait(self, seconds):
        return self.event.wait(max(0, seconds))


class Load:
    """The client sessions, in rounds without end."""

    def __init__(self, proxy):
        self.proxy = proxy
        self.running = {}
        self.transactions = 0
        self.errors = 0

    def start(self, protocol):
        self.running[protocol] = Pgbench(
            self.proxy, "-c", CLIENTS_EACH, "-T", ROUND_SECONDS, "-M", protocol, *SCRIPTS, progress=True)

    def keep_up(self):
        """Starts what has not begun or has ended."""
        for protocol in PROTOCOLS:
            if protocol in self.running and not self.running[protocol].running():
                self._collect(protocol)
            if protocol not in self.running:
                self.start(protocol)

    def _collect(self, protocol):
        run = self.running[protocol].wait(LOAD_END_S)
        self.transactions += run.transactions
        self._count_errors(protocol, run)
        self.running.pop(protocol).stop()

    def _count_errors(self, protocol, run):
        for error in run.errors[:10]:
            say(f"error ({protocol}): {error}")
        self.errors += len(run.errors)

    def tps(self):
        return sum(run.tps for run in self.running.values())

    def errors_seen(self):
        return self.errors + sum(len(run.errors) for run in self.running.values())

    def finish(self):
        for run in self.running.values():
            run.finish()
        for protocol in list(self.running):
            self._collect(protocol)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for run in self.running.values():
            run.stop()


class Peaks:
    clients = 0
    backends = 0
    on_server = 0


def say(line):
    print(line, flush=True)


def watch(proxy, on_server, load, peaks, start):
    """One line: how things are now."""
    sums = {}
    for name, _, value in proxy.metrics():
        sums[name] = sums.get(name, 0) + int(value)
    clients = sums.get("pgsluice_client_connections", 0)
    backends = sums.get("pgsluice_database_connections", 0)
    peaks.clients = max(peaks.clients, clients)
    peaks.backends = max(peaks.backends, backends)
    peaks.on_server = max(peaks.on_server, on_server.look())
    say(f"{time.monotonic() - start:6.0f} s  ClientConnections {clients:4}  DatabaseConnections {backends:3}"
        f"  borrowed {sums.get('pgsluice_database_connections_borrowed', 0):3}"
        f"  waiting {sums.get('pgsluice_clients_waiting', 0):4}"
        f"  tps {load.tps():6.0f}  errors {load.errors_seen()}")


def run(stop, seconds, with_load):
    """Runs the demo; returns the number of errors."""
    with contextlib.ExitStack() as started:
        postgres = started.enter_context(Postgres())
        if stop.asked():
            return 0
        proxy = started.enter_context(Proxy(postgres, pool={"max_connections": BACKENDS_MAX}))
        say(f"connect: {proxy.url()}")
        say(f"direct: {postgres.url()}")
        say(f"metrics: {proxy.admin_url()}/metrics")
        say(f"pid: {proxy.process.pid}")
        on_server = started.enter_context(Backends(postgres))
        load, peaks = started.enter_context(Load(proxy)), Peaks()
        if with_load and not stop.asked():
            initialize(postgres, SCALE)
        start = time.monotonic()
        next_look = start
        while not stop.asked() and (seconds is None or time.monotonic() - start < seconds):
            if proxy.process.poll() is not None:
                say(f"error: the proxy ended with {proxy.process.returncode}: {proxy.log()[-2000:]}")
                return load.errors_seen() + 1
            if with_load:
                load.keep_up()
            next_look += 1
            stop.wait(next_look - time.monotonic())
            watch(proxy, on_server, load, peaks, start)
        load.finish()
        if peaks.backends > BACKENDS_MAX:
            say(f"error: more than {BACKENDS_MAX} database connections")
            load.errors += 1
        say(f"summary: peak ClientConnections {peaks.clients}, peak DatabaseConnections {peaks.backends} by metrics"
            f" and {peaks.on_server} by pg_stat_activity (limit {BACKENDS_MAX}),"
            f" transactions {load.transactions}, errors {load.errors}")
        return load.errors


def main():
    stop = Stop()
    raise_descriptor_limit(DESCRIPTORS)
    seconds = os.environ.get("DEMO_SECONDS")
    try:
        errors = run(stop, float(seconds) if seconds else None, os.environ.get("DEMO_LOAD", "1") != "0")
    except Exception as error:
        # Ctrl-C reaches the programs that prepare the data, too.
        if stop.asked():
            return 0
        say(f"error: {error}")
        raise
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
