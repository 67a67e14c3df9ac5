"""psql and libpq's command line through the proxy."""

import os
import pathlib
import signal
import subprocess
import time

from checks import Checks, Within, same

PSQL = pathlib.Path(os.environ["POSTGRES_BIN"]) / "psql"


def psql(script, *options, expect=0):
    """Runs a script of SQL and meta commands; returns standard output and standard error."""
    result = subprocess.run([PSQL, "-XAtq", *options], input=script, text=True, capture_output=True, timeout=60)
    assert result.returncode == expect, f"exit {result.returncode}: {result.stderr}"
    return result.stdout.strip(), result.stderr.strip()


def login():
    output, _ = psql("\\conninfo\nselect current_user")
    assert output.endswith("demo"), output
    same("SSL connection" in output, os.environ["PGSSLMODE"] != "disable")


def wrong_password():
    _, errors = psql("select 1", "--dbname=password=wrong", expect=2)
    assert "password authentication failed" in errors, errors


def several_statements_in_one_query():
    same(psql("select 1\\; select 2\\; select 3;")[0].split(), ["1", "2", "3"])


def extended_parameters():
    # \bind is psql 16's; with 15 PREPARE is the script's way to a parameter.
    same(psql("prepare p(int, text) as select $1 + 1, $2;\n"
              "execute p(41, 'a');\nexecute p(1, 'ü');\ndeallocate p;")[0], "42|a\n2|ü")


def describes_a_result():
    same(psql("select 1 as a, 'x'::text as b \\gdesc")[0], "a|integer\nb|text")


def copy_in_and_out():
    lines = "\n".join(f"{number}\tline {number}" for number in range(5000))
    output, _ = psql("drop table if exists psql_copy; create table psql_copy (id int, note text);\n"
                     f"\\copy psql_copy from stdin\n{lines}\n\\.\n"
                     "select count(*), sum(id) from psql_copy;\n"
                     "\\copy (select note from psql_copy where id >= 4998 order by id) to stdout\n"
                     "drop table psql_copy;")
    same(output, "5000|12497500\nline 4998\nline 4999")


def copy_in_that_fails():
    output, errors = psql("create table psql_bad (id int);\ncopy psql_bad from stdin;\n1\nnot a number\n\\.\n"
                          "select count(*) from psql_bad;\ndrop table psql_bad;")
    same(output, "0")
    assert "invalid input syntax" in errors, errors


def commit_and_rollback():
    same(psql("create table psql_tx (id int);\nbegin; insert into psql_tx values (1); commit;\n"
              "begin; insert into psql_tx values (2); rollback;\n"
              "begin; insert into psql_tx values (3); savepoint a; insert into psql_tx values (4);\n"
              "rollback to a; commit;\n"
              "select string_agg(id::text, ',' order by id) from psql_tx;\ndrop table psql_tx;")[0], "1,3")


def error_then_goes_on():
    output, errors = psql("select 1/0;\nselect 'after';")
    same(output, "after")
    assert "division by zero" in errors, errors


def error_inside_a_transaction():
    output, errors = psql("begin;\nselect 1/0;\nselect 1;\nrollback;\nselect 'after';")
    same(output, "after")
    assert "current transaction is aborted" in errors, errors


def notice_arrives():
    _, errors = psql("do $$ begin raise notice 'hello from plpgsql'; end $$;")
    assert "hello from plpgsql" in errors, errors


def settings_are_kept():
    same(psql("set work_mem = '7MB';\nset application_name = 'psql-kept';\nbegin; select 1; commit;\n"
              "show work_mem;\nshow application_name;")[0], "1\n7MB\npsql-kept")


def temporary_table_is_kept():
    same(psql("create temp table t as select 5 as five;\nselect five from t;")[0], "5")


def settings_do_not_reach_the_next_client():
    psql("set work_mem = '11MB'; set search_path = pg_catalog;\nselect 1;")
    for _ in range(10):
        same(psql("show work_mem;\nshow search_path;")[0], '4MB\n"$user", public')


def startup_options():
    os.environ["PGOPTIONS"] = "-c statement_timeout=4321 -c search_path=pg_catalog"
    try:
        same(psql("show statement_timeout;\nbegin; commit;\nshow search_path;")[0], "4321ms\npg_catalog")
    finally:
        del os.environ["PGOPTIONS"]


def client_encoding():
    result = subprocess.run([PSQL, "-XAtq", "-c", "select 'ü'"], capture_output=True, timeout=60,
                            env={**os.environ, "PGCLIENTENCODING": "LATIN1"})
    # The literal's two UTF-8 bytes are two LATIN1 characters; they come back as they went.
    same(result.stdout.strip(), "ü".encode())


def notification():
    output, _ = psql("listen psql_channel;\nnotify psql_channel, 'news';\nselect 1;")
    assert "psql_channel" in output and "news" in output, output


def wide_row():
    same(psql("select length(repeat('x', 20000000));\nselect repeat('y', 3000000);")[0],
         "20000000\n" + "y" * 3000000)


def cursor_in_pieces():
    output, _ = psql("\\set FETCH_COUNT 100\nselect generate_series(1, 2500);")
    same(len(output.split()), 2500)


def cancel_by_ctrl_c():
    with Within(15):
        process = subprocess.Popen([PSQL, "-XAtq", "-c", "select pg_sleep(60)"], text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_for_a_sleeper()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert "canceling statement due to user request" in errors, errors
    same(psql("select 'after'")[0], "after")


def killed_client_leaves_no_transaction():
    process = subprocess.Popen([PSQL, "-XAtq"], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write("begin; select pg_advisory_xact_lock(77), 'locked';\n")
    process.stdin.flush()
    assert "locked" in process.stdout.readline()
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    with Within(10):
        psql("set lock_timeout = '10s'; select pg_advisory_lock(77); select pg_advisory_unlock(77);",
             "-v", "ON_ERROR_STOP=1")


def wait_for_a_sleeper():
    for _ in range(200):
        if psql("select count(*) from pg_stat_activity"
                " where query like 'select pg_sleep(60)%' and state = 'active'")[0] == "1":
            return
        time.sleep(0.05)
    raise AssertionError("no pg_sleep is running")


def main():
    checks = Checks()
    for name, test in [
        ("login", login),
        ("wrong password", wrong_password),
        ("several statements in one query", several_statements_in_one_query),
        ("SQL-level prepared statement", extended_parameters),
        ("describes a result", describes_a_result),
        ("copy in and out", copy_in_and_out),
        ("copy in that fails", copy_in_that_fails),
        ("commit and rollback", commit_and_rollback),
        ("error, then goes on", error_then_goes_on),
        ("error inside a transaction", error_inside_a_transaction),
        ("notice arrives", notice_arrives),
        ("settings are kept", settings_are_kept),
        ("temporary table is kept", temporary_table_is_kept),
        ("settings do not reach the next client", settings_do_not_reach_the_next_client),
        ("startup options", startup_options),
        ("client encoding", client_encoding),
        ("notification", notification),
        ("wide row", wide_row),
        ("cursor in pieces", cursor_in_pieces),
        ("cancel", cancel_by_ctrl_c),
        ("killed client leaves no transaction", killed_client_leaves_no_transaction),
    ]:
        checks.run(name, test)


if __name__ == "__main__":
    main()
