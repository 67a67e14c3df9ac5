#!/usr/bin/env python3
"""Runs what `make test` runs: every step to its end, then one total.

    tests/all.py            all of it
    tests/all.py core       one subject
    tests/all.py --list     the subjects and their steps
"""

import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
CARGO_TEST = ["cargo", "test", "--locked", "--no-fail-fast"]
RELEASE = ["cargo", "build", "--release", "--locked"]

# How test runners tell their counts: Rust's, and our own in Python.
COUNTS = re.compile(r"^(?:test result: \w+\. )?(\d+) passed[;,] (\d+) failed")


def shell_scripts():
    """Tracked files that begin with a shell's name."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        path = ROOT / name
        if path.is_file():
            with path.open("rb") as file:
                if re.match(rb"#!.*\b(ba|da)?sh\b", file.readline()):
                    yield name


def cargo_test(*modules):
    """The integration tests of these modules."""
    return [*CARGO_TEST, "--test", "it", "--", *(f"{module}::" for module in modules)]


# Name → command. A step in Python, Rust or shell alike passes when its exit code is 0.
STEPS = {
    "format": ["cargo", "fmt", "--check"],
    "clippy": ["cargo", "clippy", "--locked", "--all-targets", "--", "-D", "warnings"],
    "shellcheck": ["shellcheck", *shell_scripts()],
    "licences and bans": ["cargo", "deny", "--offline", "check", "bans", "licenses", "sources"],
    "cargo test": CARGO_TEST,
    "unit": [*CARGO_TEST, "--lib", "--bins"],
    "integration": [*CARGO_TEST, "--test", "it"],
    "relay": cargo_test("relay", "pinning", "transactions", "cancel"),
    "login": cargo_test("login", "tls", "strangers"),
    "faults": cargo_test("wounds", "pool_bounds", "cancel"),
    "operation": cargo_test("config_cli", "limits", "observability"),
    "release build": RELEASE,
    "drivers": [sys.executable, "tests/drivers/run.py"],
    "crowd": [sys.executable, "tests/transparency/crowd.py"],
    "driver suites": [sys.executable, "tests/transparency/driver_suites.py"],
    "load": [sys.executable, "tests/load/run.py"],
    "regress": [sys.executable, "tests/transparency/regress.py"],
}

SUBJECTS = {
    "lint": ["format", "clippy", "shellcheck", "licences and bans"],
    "core": ["unit", "integration"],
    "drivers": ["release build", "drivers"],
    "load": ["release build", "load"],
    "transparency": ["relay", "release build", "drivers", "driver suites", "crowd", "regress"],
    "credentials": ["login"],
    "resilience": ["faults", "release build", "load"],
    "operators": ["operation"],
    "fleet": [],
    "cache": [],
}

# "driver suites", "crowd" and "regress" take minutes and packages that may not be had: they are run by their subject.
ALL = [*SUBJECTS["lint"], "cargo test", "release build", "drivers", "load"]


def why_not(name):
    """Why this step can't be run here; None if it can. Only what is optional may be left out."""
    if name == "licences and bans" and not shutil.which("cargo-deny"):
        return "cargo-deny is not installed (cargo install cargo-deny)"
    if name == "regress" and not any((ROOT / "target/regress").glob("*/sql")):
        return "the sources of PostgreSQL can't be had (tests/transparency/fetch_regress.sh)"
    return None


def run_step(command):
    """Runs a command, its output shown; returns how many of its tests passed and failed."""
    passed = failed = 0
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            if counts := COUNTS.match(line):
                passed += int(counts[1])
                failed += int(counts[2])
    if process.returncode == 0:
        return (passed or 1), failed
    return passed, (failed or 1)


def run_steps(names):
    passed = failed = 0
    broken = []
    for name in names:
        print(f"\n=== {name}", flush=True)
        if reason := why_not(name):
            print(f"left out: {reason}", flush=True)
            continue
        started = time.monotonic()
        step_passed, step_failed = run_step(STEPS[name])
        passed, failed = passed + step_passed, failed + step_failed
        if step_failed:
            broken.append(name)
        print(f"--- {name}: {'FAILED' if step_failed else 'ok'}, {time.monotonic() - started:.0f} s", flush=True)
    if broken:
        print(f"\nfailed: {', '.join(broken)}")
    print(f"\n{passed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def main(subjects):
    if subjects == ["--list"]:
        for subject, names in SUBJECTS.items():
            print(f"{subject:13} {', '.join(names) or 'nothing yet'}")
        return 0
    if unknown := [subject for subject in subjects if subject not in SUBJECTS]:
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    names = []
    for subject in subjects:
        if not SUBJECTS[subject]:
            print(f"{subject}: nothing yet")
        names += [name for name in SUBJECTS[subject] if name not in names]
    if subjects and not names:
        return 0
    return run_steps(names or ALL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
