"""What the benchmarks measure: pgsluice, PgBouncer, and no proxy, all before the same PostgreSQL."""

import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

from harness import DATABASE, ROLE, Proxy, Server, as_postgres, free_port, wait_until

POOL_SIZE = 20
CLIENTS_MAX = 4096
STOP_DEADLINE_S = 30


def cpu_seconds(pid):
    """CPU a process has used, user and kernel, all threads."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_kb(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


class Direct(Server):
    """No proxy."""

    name = "direct"
    pid = None

    def __init__(self, postgres):
        self.port = postgres.port

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Pgsluice(Proxy):
    """The proxy of this project, at its defaults but for the number of connections."""

    name = "pgsluice"

    def __init__(self, postgres):
        super().__init__(postgres, log="warn",
                         pool={"max_connections": POOL_SIZE, "max_idle_connections_percent": 100})

    @property
    def pid(self):
        return self.process.pid


class PgBouncer(Server):
    """PgBouncer at its defaults but for what makes the two alike: transaction mode, SCRAM, the same pool size.

    It is given the server's own SCRAM verifier, not the password: that spares it the hashing of a password at each
    login, as pgsluice spares itself.
    """

    name = "pgbouncer"

    def __init__(self, postgres):
        self.postgres = postgres
        self.port = free_port()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="pgsluice-bouncer-"))
        self.process = None

    @staticmethod
    def program():
        return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")

    @classmethod
    def version(cls):
        return subprocess.run([cls.program(), "--version"], text=True, capture_output=True, check=True).stdout.split()[1]

    @property
    def pid(self):
        return self.process.pid

    def __enter__(self):
        verifier = self.postgres.sql(f"select rolpassword from pg_authid where rolname = '{ROLE}'")
        users, config = self.folder / "users.txt", self.folder / "pgbouncer.ini"
        users.touch(mode=0o600)
        users.write_text(f'"{ROLE}" "{verifier}"\n')
        config.write_text(
            "[databases]\n"
            f"{DATABASE} = host={self.postgres.host} port={self.postgres.port} dbname={DATABASE}\n"
            "[pgbouncer]\n"
            f"listen_addr = {self.host}\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {users}\n"
            f"pool_mode = transaction\ndefault_pool_size = {POOL_SIZE}\nmax_client_conn = {CLIENTS_MAX}\n"
            "log_connections = 0\nlog_disconnections = 0\nlog_stats = 0\n")
        if os.geteuid() == 0:
            for path in (self.folder, users):
                shutil.chown(path, "postgres", "postgres")
        log = open(self.folder / "pgbouncer.log", "ab")
        self.process = subprocess.Popen(as_postgres([self.program(), str(config)]), stdin=subprocess.DEVNULL,
                                        stdout=log, stderr=log, cwd="/", start_new_session=True)
        try:
            wait_until(self._answers, "PgBouncer")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _answers(self):
        if self.process.poll() is not None:
            raise RuntimeError((self.folder / "pgbouncer.log").read_text()[-4000:])
        return self.run("psql", "-XAtqc", "select 1", check=False).returncode == 0

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)  # at once
        try:
            self.process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def all_targets(postgres):
    """The targets, in the order of the table; PgBouncer only if it is there."""
    kinds = [Pgsluice, PgBouncer, Direct] if PgBouncer.program() else [Pgsluice, Direct]
    return [kind(postgres) for kind in kinds]
