"""Looks at a running server or proxy again and again in the background, and keeps what the tests judge by."""

import threading
import time

from . import ROLE
from .wire import Client

BACKENDS = "select pid from pg_stat_activity where backend_type = 'client backend' and usename = '{}'"


class Every:
    """Calls `look` every `interval_s` in a thread, from `with` to its end. What it raises is raised at the end."""

    def __init__(self, interval_s, look):
        self.interval_s, self.look = interval_s, look
        self.times = 0
        self.error = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            while not self._end.wait(self.interval_s):
                self.look()
                self.times += 1
        except Exception as error:  # handed to the one who waits for us
            self.error = error

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, kind, *_):
        self._end.set()
        self._thread.join(60)
        if self.error and kind is None:
            raise self.error


class Backends:
    """The server's own word on how many connections a role has, over a direct connection that does not count."""

    def __init__(self, postgres, role=ROLE):
        self.client = Client(postgres, application_name="observer")
        self.sql = BACKENDS.format(role) + " and application_name is distinct from 'observer'"
        self.now = self.peak = 0

    def look(self):
        self.now = len(self.client.query(self.sql))
        self.peak = max(self.peak, self.now)
        return self.now

    def terminate_one(self):
        """Kills a random backend of the role's; returns how many that were."""
        found = self.client.query(
            f"select pg_terminate_backend(pid) from ({self.sql} order by random() limit 1) as one")
        return len(found)

    def close(self):
        self.client.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Growth:
    """How far a proxy's resident memory rises above where it was."""

    def __init__(self, proxy):
        self.proxy = proxy
        self.start_kb = self.peak_kb = proxy.rss_kb()

    def look(self):
        self.peak_kb = max(self.peak_kb, self.proxy.rss_kb())

    @property
    def kb(self):
        return self.peak_kb - self.start_kb


def timed(work):
    """Runs `work`; returns its result and the seconds it took."""
    start = time.monotonic()
    return work(), time.monotonic() - start
