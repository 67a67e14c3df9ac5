//! Batches of the extended protocol.

use super::grammar::{Maker, Step};
use crate::support::frames::{
    bind, close_portal, close_statement, describe_portal, describe_statement, execute, flush,
    parse, query, sync,
};

/// Texts to prepare, and how many arguments they take. No RESET: what it gives inside a transaction differs, and a batch
/// is one.
pub const TEXTS: &[(&str, usize)] = &[
    ("SELECT v FROM t", 0),
    ("SELECT v FROM t", 0),
    ("SELECT current_user", 0),
    ("SHOW work_mem", 0),
    (
        "SELECT current_setting('TimeZone'), coalesce(current_setting('app.a', true), '')",
        0,
    ),
    ("SELECT $1::int + 1", 1),
    ("SELECT set_config('app.a', $1, false)", 1),
    ("SELECT set_config('work_mem', $1 || 'MB', true)", 1),
    (
        "SELECT set_config('search_path', 'two' || left($1, 0), false)",
        1,
    ),
    ("SET work_mem = '11MB'", 0),
    ("SET search_path = one", 0),
    (
        "SELECT extract(epoch FROM '2020-01-01 00:00'::timestamptz)::bigint",
        0,
    ),
    ("SELECT '01/02/2020'::date", 0),
    ("SELECT generate_series(1, 5)", 0),
    ("SELECT 1/0", 0),
    ("SELECT 10 / ($1::int - 7)", 1),
    ("SELECT nothing FROM t", 0),
    ("SELEC", 0),
    ("", 0),
];

/// Only where a transaction may begin and end.
const CONTROL: &[&str] = &[
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "DEALLOCATE s1",
    "DEALLOCATE ALL",
];

/// Messages in one write.
#[derive(Default)]
pub struct Batch(pub Step);

impl Batch {
    fn say(&mut self, says: String, bytes: Vec<u8>) {
        self.0.add(says, bytes);
    }

    /// One batch, and its Sync.
    pub fn add(&mut self, maker: &mut Maker<'_>, names: &[&'static str]) {
        let in_pipeline = names.len() > 3;
        if in_pipeline && maker.random.percent(15) {
            let sql =
                maker
                    .random
                    .pick(&["SELECT v FROM t", "SET search_path = two", "SELECT 1/0"]);
            return self.say(format!("Query {sql}"), query(sql));
        }
        if in_pipeline && maker.random.percent(20) {
            let sql = maker.random.pick(CONTROL);
            maker.arguments.insert("", 0);
            self.say(format!("Parse '' {sql}"), parse("", sql));
            self.run(maker, "", 0);
        } else {
            for _ in 0..1 + maker.random.below(3) {
                let name = maker.random.pick(names);
                self.part(maker, name);
            }
        }
        self.say("Sync".to_owned(), sync());
    }

    fn part(&mut self, maker: &mut Maker<'_>, name: &'static str) {
        let known = maker.arguments.get(name).copied();
        match maker.random.below(if known.is_some() { 20 } else { 8 }) {
            0..5 => {
                let (sql, count) = maker.text();
                self.say(format!("Parse '{name}' {sql}"), parse(name, sql));
                // Twice the same name is an error.
                if known.is_none() || name.is_empty() {
                    maker.arguments.insert(name, count);
                }
                if maker.random.percent(70) {
                    self.run(maker, name, count);
                }
            }
            5 => self.say(format!("Describe '{name}'"), describe_statement(name)),
            6 => {
                maker.arguments.remove(name);
                self.say(format!("Close '{name}'"), close_statement(name));
            }
            7 => self.say("Flush".to_owned(), flush()),
            _ => self.run(maker, name, known.unwrap_or(0)),
        }
    }

    fn run(&mut self, maker: &mut Maker<'_>, name: &str, count: usize) {
        let random = &mut maker.random;
        let portal = random.pick(&["", "", "", "p"]);
        let count = if random.percent(5) {
            1 - count.min(1)
        } else {
            count
        };
        let values: Vec<&str> = (0..count).map(|_| random.pick(&["5", "7", "x"])).collect();
        let says = format!("Bind '{portal}' to '{name}' {values:?}");
        self.say(says, bind(portal, name, &values));
        if random.percent(40) {
            self.say(
                format!("Describe portal '{portal}'"),
                describe_portal(portal),
            );
        }
        let rows = random.pick(&[0, 0, 0, 2]);
        self.say(format!("Execute '{portal}' {rows}"), execute(portal, rows));
        if rows > 0 && random.percent(50) {
            self.say(format!("Execute '{portal}' {rows}"), execute(portal, rows));
        }
        if portal == "p" && random.percent(50) {
            self.say("Close portal 'p'".to_owned(), close_portal("p"));
        }
    }
}
