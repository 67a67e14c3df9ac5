# What a developer runs is what CI runs. Variables on the command line reach the programs: make bench ROWS=tps

CARGO ?= cargo

.PHONY: help install build test lint demo bench fuzz clean

help:
	@echo "make demo      PostgreSQL, the proxy, and a load; stays up until stopped (DEMO_SECONDS=20, DEMO_LOAD=0)"
	@echo "make test      everything CI runs; ONLY=core for one subject: see tests/all.py --list"
	@echo "make lint      formatting, clippy, shellcheck, licences"
	@echo "make bench     beside PgBouncer; ROWS=tps,syscalls for some rows"
	@echo "make fuzz      each fuzz target for a bounded time (FUZZ_SECONDS=60)"
	@echo "make build, make install (what tests need), make clean"

install:
	tests/install.sh

build:
	$(CARGO) build --release --locked

test:
	tests/install.sh postgres drivers lint
	[ "$(ONLY)" != transparency ] || tests/install.sh regress
	python3 tests/all.py $(ONLY)

lint:
	tests/install.sh lint
	python3 tests/all.py lint

demo:
	tests/install.sh postgres
	$(MAKE) --no-print-directory build
	exec python3 benches/demo.py

bench:
	tests/install.sh bench
	$(MAKE) --no-print-directory build
	exec python3 benches/run.py

fuzz:
	tests/fuzz/run

clean:
	$(CARGO) clean
	rm -rf .venv tests/drivers/node/node_modules tests/fuzz/target tests/fuzz/artifacts
