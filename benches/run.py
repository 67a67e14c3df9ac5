#!/usr/bin/env python3
"""The benchmarks: pgsluice beside PgBouncer and beside no proxy, before the same PostgreSQL. README.md tells how to
read them.

    benches/run.py                      all rows
    ROWS=tps,syscalls benches/run.py    some: tps, syscalls, latency, logins, idle, bulk
    BENCH_ROUNDS=3 BENCH_SECONDS=4      how often and how long each is measured
"""

import contextlib
import json
import os
import pathlib
import platform
import statistics
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from harness import ROOT, Postgres, postgres_bin, raise_descriptor_limit, unwind_when_killed  # noqa: E402
from harness.pgbench import initialize  # noqa: E402
from rows import ROUNDS, ROWS, SECONDS  # noqa: E402
from targets import POOL_SIZE, PgBouncer, all_targets  # noqa: E402

RESULTS = ROOT / "target/bench/results.json"
SCALE = 10
SERVER_CONNECTIONS = 200  # both pools and the clients that come directly
DESCRIPTORS = 5000
NAMES = ("pgsluice", "pgbouncer", "direct")
RATIOS = {"vs pgbouncer": "pgbouncer", "vs direct": "direct"}


def machine():
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    model = next((line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    return {"cores": len(os.sched_getaffinity(0)), "cpu": model, "kernel": platform.release(), "load before": load}


class Results:
    """Every value by measure and target, in the order they came."""

    def __init__(self):
        self.measures = {}

    def add(self, row, measure, unit, target, value):
        entry = self.measures.setdefault(measure, {"row": row, "unit": unit, "values": {}})
        entry["values"].setdefault(target, []).append(value)

    def summary(self):
        for measure, entry in self.measures.items():
            medians = {target: statistics.median(values) for target, values in entry["values"].items()}
            ratios = {title: medians["pgsluice"] / medians[other] for title, other in RATIOS.items()
                      if "pgsluice" in medians and medians.get(other)}
            yield {"measure": measure, **entry, "medians": medians, "ratios": ratios}


def figure(value):
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def table(summary):
    """The rows as text, in columns."""
    head = ["", "unit", *NAMES, *RATIOS]
    lines = [head]
    for entry in summary:
        lines.append([entry["measure"], entry["unit"],
                      *(figure(entry["medians"].get(name)) for name in NAMES),
                      *(figure(entry["ratios"].get(title)) for title in RATIOS)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        left = [cell.ljust(width) for cell, width in zip(line[:2], widths)]
        right = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:])]
        yield "  ".join(left + right).rstrip()


def chosen_rows():
    names = [name.strip() for name in os.environ.get("ROWS", "").split(",") if name.strip()] or list(ROWS)
    unknown = set(names) - set(ROWS)
    if unknown:
        raise SystemExit(f"unknown rows: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    return names


def measure(names):
    results = Results()
    for name in names:
        # Every row has fresh processes: what one leaves behind in memory is not the next one's.
        with Postgres(max_connections=SERVER_CONNECTIONS) as postgres, contextlib.ExitStack() as stack:
            initialize(postgres, SCALE)
            targets = [stack.enter_context(target) for target in all_targets(postgres)]
            start = time.monotonic()
            for what, unit, target, value in ROWS[name](targets):
                results.add(name, what, unit, target, value)
            print(f"{name}: measured in {time.monotonic() - start:.0f} s", flush=True)
    return list(results.summary())


def main():
    names = chosen_rows()
    unwind_when_killed()
    raise_descriptor_limit(DESCRIPTORS)
    about = {"machine": machine(), "rounds": ROUNDS, "seconds": SECONDS, "pool size": POOL_SIZE,
             "postgres": postgres_bin().parts[-2],
             "pgbouncer": PgBouncer.version() if PgBouncer.program() else None}
    print("machine: " + ", ".join(f"{key} {value}" for key, value in about["machine"].items()), flush=True)
    if not about["pgbouncer"]:
        print("no PgBouncer here (tests/install.sh bench): its column stays empty", flush=True)
    summary = measure(names)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({**about, "results": summary}, indent=1, ensure_ascii=False) + "\n")
    print(f"\nPostgreSQL {about['postgres']}, PgBouncer {about['pgbouncer']}, {POOL_SIZE} database connections,"
          f" medians of {ROUNDS} rounds of {SECONDS} s\n")
    for line in table(summary):
        print(line)
    print(f"\nwritten to {RESULTS.relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    main()
