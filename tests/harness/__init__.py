"""A throwaway PostgreSQL and a proxy before it, for the demo, the load tests, the driver tests and the benchmarks.

Standard library only. Everything listens on 127.0.0.1, lives in a temporary folder, and is stopped by process id.

    with Postgres() as pg, Proxy(pg, pool={"max_connections": 20}) as proxy:
        psql(proxy, "select 1")
"""

import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
READY_DEADLINE_S = 60
STOP_DEADLINE_S = 60
LAST_WORDS = 4000
DATABASE = "demo"
ROLE = "demo"
PASSWORD = "demo-secret-7f3a"


def free_port():
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def raise_descriptor_limit(needed=0):
    """Lets this process and its children open as many files as they may; says so if that is too few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SystemExit(f"needs {needed} open files, the limit is {hard}: raise it (ulimit -Hn)")


def unwind_when_killed():
    """Lets SIGTERM and SIGHUP end this process as Ctrl-C does: everything started in a `with` is stopped."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


def wait_until(ready, what, deadline_s=READY_DEADLINE_S):
    """Calls `ready` until it is true; the only place that waits for another process."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if ready():
            return
        time.sleep(0.02)
    raise TimeoutError(f"{what}: not within {deadline_s} s")


def postgres_bin():
    """The folder of the newest server binaries; POSTGRES_BIN names another."""
    named = os.environ.get("POSTGRES_BIN")
    if named:
        return pathlib.Path(named)
    found = sorted(
        pathlib.Path("/usr/lib/postgresql").glob("*/bin/postgres"),
        key=lambda path: int(path.parts[-3]),
    )
    if not found:
        raise SystemExit("no PostgreSQL server binaries: run tests/install.sh")
    return found[-1].parent


def as_postgres(command):
    """PostgreSQL refuses to run as root; `su` would lower the descriptor limit."""
    if os.geteuid() != 0:
        return command
    return ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", *command]


def proxy_binary():
    """The proxy to test; PGSLUICE_BIN names another than the release build."""
    binary = pathlib.Path(os.environ.get("PGSLUICE_BIN", ROOT / "target/release/pgsluice"))
    if not binary.exists():
        raise SystemExit(f"{binary} is missing: cargo build --release")
    return binary


def self_signed(folder, name="localhost"):
    """Makes a certificate and its key; returns both paths."""
    certificate, key = folder / "server.crt", folder / "server.key"
    subprocess.run(
        ["openssl", "req", "-new", "-x509", "-days", "2", "-nodes", "-newkey", "ec",
         "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={name}",
         "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1",
         "-out", str(certificate), "-keyout", str(key)],
        check=True, capture_output=True)
    key.chmod(0o600)
    return certificate, key


class Server:
    """What a client needs to know to connect."""

    host = "127.0.0.1"
    port = None

    def url(self, database=DATABASE, role=ROLE, password=PASSWORD, **options):
        query = "?" + urllib.parse.urlencode(options) if options else ""
        return f"postgresql://{role}:{password}@{self.host}:{self.port}/{database}{query}"

    def environment(self, **more):
        """libpq's environment variables, on top of this process's own."""
        own = {"PGHOST": self.host, "PGPORT": str(self.port), "PGUSER": ROLE,
               "PGPASSWORD": PASSWORD, "PGDATABASE": DATABASE, **more}
        return {**os.environ, **own}

    def run(self, *command, check=True, timeout=600, environment=None, **options):
        """Runs a client program of PostgreSQL's against this server; its output is kept."""
        program = postgres_bin() / command[0]
        result = subprocess.run(
            [str(program), *map(str, command[1:])], env=self.environment(**(environment or {})),
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout, **options)
        if check and result.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))}: {result.stderr[-4000:]}")
        return result

    def sql(self, text, **options):
        """Runs SQL by psql; returns the bare rows as text."""
        return self.run("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", text, **options).stdout.strip()


class Postgres(Server):
    """A PostgreSQL server with one superuser `demo` and one database `demo`."""

    def __init__(self, max_connections=100, tls=False, **settings):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="pgsluice-pg-"))
        self.port = free_port()
        self.tls = tls
        self.settings = {
            "max_connections": max_connections, "fsync": "off", "listen_addresses": "127.0.0.1",
            "port": self.port, "unix_socket_directories": str(self.folder),
            "shared_buffers": "256MB", **settings}
        self.process = None

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self):
        password_file = self.folder / "password"
        password_file.write_text(PASSWORD)
        data = self.folder / "data"
        if self.tls:
            self.settings["ssl"] = "on"
            for key, path in zip(("ssl_cert_file", "ssl_key_file"), self_signed(self.folder)):
                self.settings[key] = str(path)
        if os.geteuid() == 0:
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, "postgres", "postgres")
        binaries = postgres_bin()
        subprocess.run(
            as_postgres([str(binaries / "initdb"), "-D", str(data), "-U", ROLE, "-E", "UTF8",
                         "--locale=C.UTF-8", "--no-sync", "-A", "scram-sha-256",
                         f"--pwfile={password_file}"]),
            check=True, capture_output=True, cwd="/")
        options = [part for key, value in self.settings.items() for part in ("-c", f"{key}={value}")]
        log = open(self.folder / "server.log", "ab")
        self.process = subprocess.Popen(
            as_postgres([str(binaries / "postgres"), "-D", str(data), *options]),
            stdout=log, stderr=log, cwd="/", start_new_session=True)
        wait_until(self._answers, "PostgreSQL")
        self.run("createdb", DATABASE, environment={"PGDATABASE": "postgres"})

    def _answers(self):
        if self.process.poll() is not None:
            raise RuntimeError((self.folder / "server.log").read_text()[-LAST_WORDS:])
        return self.run("pg_isready", check=False).returncode == 0

    def __exit__(self, *_):
        if self.process:
            self.process.send_signal(signal.SIGINT)  # fast shutdown
            try:
                self.process.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGQUIT)  # immediate shutdown
                self.process.wait(STOP_DEADLINE_S)
        shutil.rmtree(self.folder, ignore_errors=True)


class Proxy(Server):
    """A proxy before `target`. Keyword arguments are sections of the configuration, as dicts."""

    def __init__(self, target, secrets=None, tls=False, log="info", **sections):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="pgsluice-proxy-"))
        self.port, self.admin_port = free_port(), free_port()
        self.process = None
        self.sections = {section: dict(values) for section, values in sections.items()}
        self._set("listen", addresses=[f"127.0.0.1:{self.port}"])
        self._set("admin", address=f"127.0.0.1:{self.admin_port}")
        self._set("secrets", file="secrets.json")
        self._set("log", level=log)
        self.secrets = secrets or [{"username": ROLE, "password": PASSWORD, "host": target.host,
                                    "port": target.port, "dbname": DATABASE}]
        if tls:
            certificate, key = self_signed(self.folder)
            self._set("listen", tls_certificate_file=str(certificate), tls_private_key_file=str(key))

    def _set(self, section, **values):
        mine = self.sections.setdefault(section, {})
        for key, value in values.items():
            mine.setdefault(key, value)

    def __enter__(self):
        config, secrets = self.folder / "pgsluice.toml", self.folder / "secrets.json"
        secrets.touch(mode=0o600)
        secrets.write_text(json.dumps(self.secrets))
        # A JSON string, number, boolean or list of these is TOML, too.
        config.write_text("".join(
            f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
            for section, values in self.sections.items()))
        log = open(self.folder / "proxy.log", "ab")
        self.process = subprocess.Popen(
            [str(proxy_binary()), "run", "--config", str(config)], stdout=log, stderr=log,
            start_new_session=True)  # a Ctrl-C in the terminal is for us to handle
        try:
            wait_until(self._ready, "pgsluice")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _ready(self):
        if self.process.poll() is not None:
            raise RuntimeError(self.log()[-LAST_WORDS:])
        try:
            with urllib.request.urlopen(f"{self.admin_url()}/readyz", timeout=2):
                return True
        except OSError:
            return False

    def log(self):
        return (self.folder / "proxy.log").read_text()

    def admin_url(self):
        return f"http://127.0.0.1:{self.admin_port}"

    def metrics(self):
        """All samples of /metrics as a list of (name, labels as a dict, value)."""
        with urllib.request.urlopen(f"{self.admin_url()}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return [parse_sample(line) for line in lines if line and not line.startswith("#")]

    def metric(self, name, **labels):
        """The sum of a metric's samples that have these labels."""
        return sum(value for sample, its, value in self.metrics()
                   if sample == name and all(its.get(key) == label for key, label in labels.items()))

    def rss_kb(self):
        """Resident memory of the proxy, in kB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))

    def cpu_seconds(self):
        """CPU the proxy has used, user and kernel."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, number=signal.SIGTERM):
        """Signals the proxy and waits for its end; returns its exit code."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_DEADLINE_S) if self.process else None

    def __exit__(self, kind, *_):
        try:
            self.stop()
            log = self.log()
            if kind and issubclass(kind, Exception):
                print(f"the proxy's last words:\n{log[-LAST_WORDS:]}", file=sys.stderr, flush=True)
            elif "panicked at" in log:
                raise RuntimeError(f"the proxy panicked: {log[-LAST_WORDS:]}")
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def parse_sample(line):
    name_and_labels, value = line.rsplit(" ", 1)
    name, _, rest = name_and_labels.partition("{")
    pairs = (pair.split("=", 1) for pair in rest.rstrip("}").split(",") if pair)
    return name, {key: text.strip('"') for key, text in pairs}, float(value)
