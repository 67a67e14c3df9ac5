"""Runs pgbench and tells what came of it."""

import re
import signal
import subprocess
import tempfile
import threading

from . import postgres_bin

PROGRESS = re.compile(r"progress: [\d.]+ s, ([\d.]+) tps")
# What pgbench says on standard error that is no error.
CHATTER = ("progress:", "pgbench (", "starting vacuum", "end.", "scale option ignored")


def initialize(server, scale):
    """Makes and fills pgbench's tables; to be done directly, not through the proxy."""
    server.run("pgbench", "-i", "-q", "-s", scale)


class Pgbench:
    """A running pgbench. Ends by itself (`-t`, `-T`) or by `finish`."""

    def __init__(self, server, *arguments, progress=False):
        command = [str(postgres_bin() / "pgbench"), "-n", *map(str, arguments)]
        if progress:
            command += ["-P", "1"]
        self.tps = 0.0  # of the last second, if progress was asked for
        self.errors = []
        self._report = tempfile.TemporaryFile("w+")
        # A session of its own: a Ctrl-C in the terminal is for us to handle, not for it.
        self.process = subprocess.Popen(
            command, env=server.environment(), text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=self._report, stderr=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            progress = PROGRESS.match(line)
            if progress:
                self.tps = float(progress[1])
            elif not line.strip() or line.startswith(CHATTER):
                continue
            elif self.errors and not line.startswith("pgbench:"):
                self.errors[-1] += " " + line.strip()  # the DETAIL or CONTEXT of the error above
            else:
                self.errors.append(line.strip())

    def running(self):
        return self.process.poll() is None

    def finish(self):
        """Ends a run with `-T` early but properly: SIGALRM is how pgbench learns that its time is up."""
        if self.running():
            self.process.send_signal(signal.SIGALRM)

    def wait(self, timeout=600):
        self.process.wait(timeout)
        self._reader.join(10)
        self._report.seek(0)
        self.report = self._report.read()
        if self.process.returncode != 0 and not self.errors:
            self.errors.append(f"pgbench ended with {self.process.returncode}")
        return self

    def _number(self, pattern):
        found = re.search(pattern, self.report)
        return float(found[1]) if found else 0.0

    @property
    def transactions(self):
        return int(self._number(r"number of transactions actually processed: (\d+)"))

    @property
    def rate(self):
        return self._number(r"tps = ([\d.]+)")

    @property
    def latency_ms(self):
        return self._number(r"latency average = ([\d.]+) ms")

    def stop(self):
        if self.running():
            self.process.kill()
        self.process.wait()
        self._reader.join(10)
        self.process.stderr.close()
        self._report.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def pgbench(server, *arguments, timeout=600):
    """Runs pgbench to its end."""
    with Pgbench(server, *arguments) as run:
        return run.wait(timeout)
