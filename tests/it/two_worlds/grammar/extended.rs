//! Batches of the extended protocol.

use super::Maker;
use crate::two_worlds::script::{Message, Step};

/// Texts to prepare, and how many arguments they take.
const TEXTS: &[(&str, usize)] = &[
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
    ("SELECT $1::date, $1::timestamptz", 1),
    ("SELECT generate_series(1, 5)", 0),
    ("SELECT 1/0", 0),
    ("SELECT 10 / ($1::int - 7)", 1),
    ("SELECT nothing FROM t", 0),
    ("SELEC", 0),
    ("", 0),
];

const OF_OWN_TABLE: &[(&str, usize)] = &[
    ("SELECT * FROM public.own_{tag}", 0),
    ("SELECT a FROM public.own_{tag}", 0),
    ("INSERT INTO public.own_{tag} (a) VALUES ($1)", 1),
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
    fn add_message(&mut self, message: Message) {
        self.0.0.push(message);
    }

    /// One batch, and its Sync.
    pub fn add(&mut self, maker: &mut Maker<'_>, names: &[&'static str]) {
        let in_pipeline = names.len() > 3;
        if std::mem::take(&mut maker.leaves_unnamed) {
            self.add_message(Message::CloseStatement(String::new()));
            self.add_message(Message::Sync);
        }
        if in_pipeline && maker.random.percent(15) {
            let sql =
                (maker.random).pick(&["SELECT v FROM t", "SET search_path = two", "SELECT 1/0"]);
            let sql = if maker.fits("", sql) { sql } else { "" };
            return self.add_message(Message::Query(sql.to_owned()));
        }
        if in_pipeline && maker.random.percent(20) {
            let sql = maker.random.pick(CONTROL);
            maker.prepares("", sql, 0);
            self.add_message(Message::Parse(String::new(), sql.to_owned()));
            self.add_message(Message::Bind(String::new(), String::new(), Vec::new()));
            self.add_message(Message::Execute(String::new(), 0));
        } else {
            for _ in 0..1 + maker.random.below(3) {
                let name = maker.random.pick(names);
                self.part(maker, name);
            }
        }
        self.add_message(Message::Sync);
    }

    fn part(&mut self, maker: &mut Maker<'_>, name: &'static str) {
        let known = maker.arguments.get(name).copied();
        match maker.random.below(if known.is_some() { 20 } else { 8 }) {
            0..5 => {
                let own = maker.has_table && maker.random.percent(30);
                let (sql, count) = maker.random.pick(if own { OF_OWN_TABLE } else { TEXTS });
                if !maker.fits(name, sql) {
                    return;
                }
                self.add_message(Message::Parse(name.to_owned(), sql.to_owned()));
                // Twice the same name is an error.
                if known.is_none() || name.is_empty() {
                    maker.prepares(name, sql, count);
                }
                if maker.random.percent(70) {
                    self.run(maker, name, count);
                }
            }
            5 if known.is_some() || !name.is_empty() => {
                self.add_message(Message::DescribeStatement(name.to_owned()));
            }
            6 => {
                maker.arguments.remove(name);
                self.add_message(Message::CloseStatement(name.to_owned()));
            }
            5 | 7 => self.add_message(Message::Flush),
            _ => self.run(maker, name, known.unwrap_or(0)),
        }
    }

    fn run(&mut self, maker: &mut Maker<'_>, name: &str, count: usize) {
        let random = &mut maker.random;
        let portal = random.pick(&["", "", "", "p"]).to_owned();
        let count = match random.percent(5) {
            true => 1 - count.min(1),
            false => count,
        };
        let values = (0..count).map(|_| random.pick(&["5", "7", "x", "02/03/2020"]).to_owned());
        let values = values.collect();
        self.add_message(Message::Bind(portal.clone(), name.to_owned(), values));
        if random.percent(40) {
            self.add_message(Message::DescribePortal(portal.clone()));
        }
        let rows = random.pick(&[0, 0, 0, 2]);
        self.add_message(Message::Execute(portal.clone(), rows));
        if rows > 0 && random.percent(50) {
            self.add_message(Message::Execute(portal.clone(), rows));
        }
        if portal == "p" && random.percent(50) {
            self.add_message(Message::ClosePortal(portal));
        }
    }
}
