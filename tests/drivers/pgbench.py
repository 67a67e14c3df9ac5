"""pgbench in its three protocols, with more clients than database connections where nothing pins."""

import os
import pathlib
import re
import subprocess

from checks import Checks

PGBENCH = pathlib.Path(os.environ["POSTGRES_BIN"]) / "pgbench"
CONNECTIONS_MAX = int(os.environ["CONNECTIONS_MAX"])
MANY, FEW = 3 * CONNECTIONS_MAX, CONNECTIONS_MAX - 2
TRANSACTIONS = 40


def pgbench(*arguments):
    result = subprocess.run([PGBENCH, *map(str, arguments)], text=True, capture_output=True, timeout=120)
    assert result.returncode == 0, f"exit {result.returncode}: {result.stderr[-2000:]}"
    return result.stdout


def fill():
    pgbench("--initialize", "--scale=1", "--quiet")


def measure(clients, *arguments):
    output = pgbench(f"--client={clients}", "--jobs=2", f"--transactions={TRANSACTIONS}", "--no-vacuum", *arguments)
    done = int(re.search(r"actually processed: (\d+)", output)[1])
    assert done == clients * TRANSACTIONS, output
    assert "number of failed transactions: 0 " in output, output


def main():
    checks = Checks()
    checks.run("fills its tables by COPY", fill)
    # A statement with a name pins its backend, so no more clients than connections prepare.
    for protocol, clients in (("simple", MANY), ("extended", MANY), ("prepared", FEW)):
        checks.run(f"{protocol}: reads", measure, clients, f"--protocol={protocol}", "--select-only")
        checks.run(f"{protocol}: writes", measure, clients, f"--protocol={protocol}")
    checks.run("a login for each transaction", measure, 4, "--connect", "--select-only")


if __name__ == "__main__":
    main()
