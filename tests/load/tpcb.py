"""Money is neither made nor lost, and the number of database connections stays within its limit, under load.

pgbench's TPC-B moves one delta from an account, a teller and a branch and writes it down: four sums that must agree.
"""

import time

from harness import Postgres, Proxy
from harness.observe import Backends, Every
from harness.pgbench import initialize, pgbench

CLIENTS = 200
BACKENDS_MAX = 10
TRANSACTIONS = 100_000
SCALE = 20
LOOK_EVERY_S = 0.02
KILL_EVERY_S = 0.1
KILL_ROUNDS = 4
KILL_ROUND_S = 3
KILLS_MIN = 20

# What a client may be told when its database connection is killed: PostgreSQL's own words (57P01), or ours (08006).
KILLED = ("terminating connection due to administrator command", "the database connection was lost")
# pgbench says this of a client whose connection is gone, beside what that client was told.
AFTERMATH = ("perhaps the backend died while processing", "Run was aborted; the above results are incomplete")


def sums(server):
    """The four sums and the number of history rows."""
    return [int(value) for value in server.sql(
        "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),"
        " (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history),"
        " (select count(*) from pgbench_history)").split("|")]


def check_sums(server):
    *amounts, rows = sums(server)
    assert len(set(amounts)) == 1, f"accounts, tellers, branches, history differ: {amounts}"
    return rows


def check_bound(backends, proxy):
    assert backends.peak <= BACKENDS_MAX, f"{backends.peak} connections on the server, the limit is {BACKENDS_MAX}"
    assert backends.peak > 0, "the observer saw nothing"
    assert proxy.metric("pgsluice_database_connections") <= BACKENDS_MAX


def test_balances_agree_and_connections_are_bounded(say):
    """100,000 transactions of 200 clients over 10 backends: no error, equal sums, never an eleventh connection."""
    with Postgres() as postgres, Proxy(postgres, pool={"max_connections": BACKENDS_MAX}) as proxy:
        initialize(postgres, SCALE)
        with Backends(postgres) as backends, Every(LOOK_EVERY_S, backends.look) as looks:
            run = pgbench(proxy, "-c", CLIENTS, "-j", 2, "-t", TRANSACTIONS // CLIENTS)
        say(f"{run.transactions} transactions, {run.rate:.0f} a second, {len(run.errors)} errors;"
            f" at most {backends.peak} connections in {looks.times} looks")
        assert not run.errors, run.errors[:10]
        assert run.transactions == TRANSACTIONS
        check_bound(backends, proxy)
        assert check_sums(postgres) == TRANSACTIONS


def is_documented(error):
    return any(words in error for words in (*KILLED, *AFTERMATH))


def test_killed_backends_lose_and_repeat_nothing(say):
    """Backends are killed at random: clients get a documented error, nothing is lost, nothing is done twice."""
    # A killed connection is a line in the log; the rest of it is not needed.
    with Postgres() as postgres, Proxy(postgres, log="error", pool={"max_connections": BACKENDS_MAX}) as proxy:
        initialize(postgres, SCALE)
        kills = processed = 0
        errors = []

        def kill():
            nonlocal kills
            kills += killer.terminate_one()

        with Backends(postgres) as backends, Backends(postgres) as killer, \
                Every(LOOK_EVERY_S, backends.look), Every(KILL_EVERY_S, kill):
            for _ in range(KILL_ROUNDS):
                run = pgbench(proxy, "-c", CLIENTS, "-j", 2, "-T", KILL_ROUND_S)
                processed += run.transactions
                errors += run.errors
        time.sleep(0.5)  # what was cut off is rolled back
        rows = check_sums(postgres)
        undocumented = [error for error in errors if not is_documented(error)]
        say(f"{kills} backends killed; {processed} transactions acknowledged, {rows} carried out; {len(errors)} lines"
            f" of errors, {len(undocumented)} of them undocumented; at most {backends.peak} connections")
        assert not undocumented, undocumented[:10]
        assert rows >= processed, f"{processed} transactions acknowledged, but only {rows} carried out"
        check_bound(backends, proxy)
        assert kills >= KILLS_MIN, "too few to judge by"
        assert proxy.sql("select 1") == "1"
