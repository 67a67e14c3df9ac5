//! Objects that live in a session, or are changed under it.

use super::Maker;
use crate::two_worlds::script::{Message, Step};

pub const SQL_PREPARE: &[&str] = &[
    "PREPARE q1 AS SELECT v FROM t",
    "PREPARE q2(int) AS SELECT $1 + 1",
    "PREPARE q3 AS SELECT '01/02/2020'::date, '2020-02-03 04:05:06'::timestamptz",
    "EXECUTE q1",
    "EXECUTE q2(4)",
    "EXECUTE q3",
    "DEALLOCATE q1",
    "DEALLOCATE q2",
    "DEALLOCATE ALL",
];

pub const TEMP: &[&str] = &[
    "CREATE TEMP TABLE mine (i int)",
    "CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT 1 AS i",
    "CREATE TEMP TABLE t AS SELECT 'mine' AS v",
    "INSERT INTO mine VALUES (1), (2)",
    "SELECT count(*) FROM mine",
    "SELECT count(*) FROM mine",
    "DROP TABLE mine",
    "DISCARD TEMP",
];

pub const LOCK: &[&str] = &[
    "SELECT pg_advisory_lock({tag})",
    "SELECT pg_try_advisory_lock_shared({tag})",
    "SELECT pg_advisory_xact_lock({tag})",
    "SELECT pg_advisory_unlock_all()",
    "SELECT pg_advisory_unlock({tag})",
    "SELECT pg_advisory_unlock({tag})",
    "SELECT pg_advisory_unlock_shared({tag})",
];

pub const CURSOR: &[&str] = &[
    "DECLARE c CURSOR FOR SELECT generate_series(1, 5)",
    "DECLARE c SCROLL CURSOR FOR SELECT v FROM t",
    "FETCH 2 FROM c",
    "FETCH 1 FROM c",
    "MOVE 1 FROM c",
    "CLOSE c",
];

pub const HOLD: &[&str] = &[
    "DECLARE h CURSOR WITH HOLD FOR SELECT generate_series(1, 5)",
    "DECLARE h CURSOR WITH HOLD FOR SELECT generate_series(1, 5)",
    "FETCH 2 FROM h",
    "FETCH 1 FROM h",
    "CLOSE h",
    "CLOSE ALL",
];

pub const LISTEN: &[&str] = &[
    "LISTEN channel_{tag}",
    "LISTEN channel_{tag}",
    "LISTEN other_{tag}",
    "NOTIFY channel_{tag}, 'hello'",
    "NOTIFY channel_{tag}, 'hello'",
    "NOTIFY channel_{tag}, 'again'",
    "SELECT pg_notify('other_{tag}', generate_series(1, 3)::text)",
    "UNLISTEN channel_{tag}",
    "UNLISTEN *",
];

/// A table of the session's own, in the sight of all.
pub const DDL: &[&str] = &[
    CREATE,
    "CREATE TABLE public.own_{tag} AS SELECT 1 AS a, 'x' AS b",
    "ALTER TABLE public.own_{tag} ADD COLUMN c int DEFAULT 7",
    "ALTER TABLE public.own_{tag} ALTER COLUMN a TYPE text",
    "ALTER TABLE public.own_{tag} DROP COLUMN b",
    "INSERT INTO public.own_{tag} VALUES (1)",
    "SELECT * FROM public.own_{tag}",
    "TRUNCATE public.own_{tag}",
    DROP,
];

pub const CREATE: &str = "CREATE TABLE public.own_{tag} (a int, b text)";

pub const DROP: &str = "DROP TABLE IF EXISTS public.own_{tag}";

pub const READ: &[&str] = &[
    "SELECT name, statement, is_holdable, is_scrollable FROM pg_cursors ORDER BY name",
    "SELECT mode, granted FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() ORDER BY mode",
    "SELECT current_schemas(false)",
    "SELECT nothing",
    "SELEC",
    "SELECT v FROM t; ",
    "",
    "SELECT 10 / (length(current_setting('work_mem')) - 3)",
    "VALUES (now() IS NULL)",
];

const SEQUENCE: &[&str] = &[
    "CREATE TEMP SEQUENCE own",
    "CREATE TEMP SEQUENCE own START 10",
    "SELECT nextval('own')",
    "SELECT nextval('own')",
    "SELECT setval('own', 40)",
    "SELECT currval('own')",
    "SELECT lastval()",
    "DISCARD SEQUENCES",
    "DROP SEQUENCE own",
];

impl Maker<'_> {
    pub fn sequence(&mut self) {
        let sql = self.random.pick(SEQUENCE);
        // A question that may have no answer must not fail a transaction that goes on.
        let asks = sql.contains("currval") || sql.contains("lastval");
        match asks && self.in_transaction {
            true => self.statement("SELECT nextval('own'), currval('own'), lastval()"),
            false if asks => self.steps.push(Step::query(sql)),
            false => self.statement(sql),
        }
    }

    pub fn copy(&mut self) {
        if self.random.percent(70) {
            return self.one_of(&[
                "COPY (SELECT v FROM t) TO STDOUT",
                "COPY (SELECT generate_series(1, 3)) TO STDOUT",
                "COPY (SELECT 1 / (g - 2) FROM generate_series(1, 3) g) TO STDOUT",
                "COPY (SELECT '2020-02-03 04:05:06'::timestamptz, 1.5::float8) TO STDOUT",
            ]);
        }
        let end = match self.random.percent(80) {
            true => Message::CopyDone,
            false => Message::CopyFail,
        };
        let data = self.random.pick(&["1\tx\n", "1\tx\n2\ty\n", "broken\n"]);
        self.steps.push(Step(vec![
            Message::Query("COPY public.own_{tag} FROM STDIN".to_owned()),
            Message::CopyData(data.to_owned()),
            end,
        ]));
    }
}
