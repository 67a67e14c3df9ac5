//! Run-time parameters: set in every way, and read by what they decide.

use super::{Maker, Random};
use crate::two_worlds::script::{Message, Step};

const PARAMETERS: &[(&str, &[&str])] = &[
    ("work_mem", &["'3MB'", "'5MB'", "'nonsense'", "4096"]),
    (
        "TimeZone",
        &["'Asia/Tokyo'", "'America/New_York'", "'UTC'", "'No/Where'"],
    ),
    ("DateStyle", &["'German'", "'SQL, DMY'", "'ISO, MDY'"]),
    ("IntervalStyle", &["iso_8601", "postgres", "sideways"]),
    ("search_path", &["one", "two", "two, one", "nowhere", "''"]),
    ("app.a", &["'a1'", "'it''s'", "''"]),
    ("app.b", &["'b1'", "'b2'"]),
    ("statement_timeout", &["'50s'", "'70s'", "0"]),
    ("extra_float_digits", &["0", "-3", "1"]),
    ("bytea_output", &["hex", "escape"]),
    ("standard_conforming_strings", &["on", "off"]),
    ("client_encoding", &["'LATIN1'", "'UTF8'", "'KLINGON'"]),
    ("application_name", &["'one'", "'two words'", "'\u{e4}'"]),
    (
        "default_transaction_isolation",
        &["serializable", "'read committed'"],
    ),
    ("client_min_messages", &["warning", "notice", "error"]),
];

pub const READ_ALL: &str = "SELECT current_user, session_user, current_setting('work_mem'), \
    current_setting('TimeZone'), current_setting('search_path'), \
    coalesce(current_setting('app.a', true), ''), coalesce(current_setting('app.b', true), ''), \
    coalesce(current_setting('app.c', true), ''), current_setting('statement_timeout'), \
    current_setting('application_name'), current_setting('role'), current_setting('transaction_isolation'), \
    current_setting('transaction_read_only'), current_setting('client_min_messages'), \
    '2020-02-03 04:05:06+00'::timestamptz, '26 hours'::interval, 0.1::float8 + 0.2, \
    decode('ff5c00', 'hex'), chr(228), 'a\\\\b'";

pub const DOES: &[&str] = &[
    "DO $$ BEGIN PERFORM set_config('app.b', 'done', false); END $$",
    "DO $$ BEGIN SET work_mem = '6MB'; END $$",
    "DO $$ BEGIN SET LOCAL work_mem = '8MB'; END $$",
    "DO $$ BEGIN SET search_path = two; RAISE division_by_zero; END $$",
    "DO $$ BEGIN SET TimeZone = 'Asia/Tokyo'; EXCEPTION WHEN others THEN NULL; END $$",
    "DO $$ BEGIN RAISE NOTICE 'the zone is %', current_setting('TimeZone'); END $$",
];

/// What a client asks for at login.
pub fn startup(random: &mut Random) -> Vec<(String, String)> {
    if random.percent(50) {
        return Vec::new();
    }
    let mut all: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: &str| all.push((name.to_owned(), value.to_owned()));
    for (name, value) in [
        ("TimeZone", "Europe/Paris"),
        ("application_name", "somebody"),
        ("DateStyle", "German"),
        ("client_encoding", "LATIN1"),
        ("extra_float_digits", "-2"),
    ] {
        if random.percent(30) {
            add(name, value);
        }
    }
    let options = ["-c app.a=start", "-c work_mem=7MB", "-c search_path=one"];
    let options: Vec<_> = options.into_iter().filter(|_| random.percent(40)).collect();
    if !options.is_empty() {
        add("options", &options.join(" "));
    }
    all
}

pub fn show(random: &mut Random) -> String {
    let (name, _) = random.pick(PARAMETERS);
    if name.contains('.') {
        return format!("SELECT coalesce(current_setting('{name}', true), '')");
    }
    format!("SHOW {name}")
}

impl Maker<'_> {
    pub fn set_sql(&mut self, verb: &str) -> String {
        loop {
            let (name, values) = self.random.pick(PARAMETERS);
            let sql = format!("{verb} {name} = {}", self.random.pick(values));
            if self.fits("", &sql) {
                return sql;
            }
        }
    }

    pub fn set(&mut self, verb: &str) {
        let sql = match self.random.below(20) {
            0 => {
                "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE".to_owned()
            }
            1 => "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY".to_owned(),
            2 => "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE".to_owned(),
            3 => "SET TIME ZONE 'Asia/Tokyo'".to_owned(),
            4 => "SET NAMES 'LATIN1'".to_owned(),
            5 => "SET TRANSACTION READ ONLY".to_owned(),
            _ => self.set_sql(verb),
        };
        self.statement(&sql);
    }

    pub fn reset(&mut self) {
        let (name, _) = self.random.pick(PARAMETERS);
        let sql = match self.random.below(6) {
            0..2 => "RESET ALL".to_owned(),
            2 => format!("SET {name} TO DEFAULT"),
            3 => "SET TIME ZONE LOCAL".to_owned(),
            _ => format!("RESET {name}"),
        };
        self.statement(&sql);
    }

    pub fn set_config(&mut self) {
        let (name, value) = self.random.pick(&[
            ("app.a", "c1"),
            ("app.b", "c2"),
            ("work_mem", "9MB"),
            ("TimeZone", "Asia/Tokyo"),
            ("search_path", "two"),
            ("client_encoding", "UTF8"),
            ("work_mem", "bad"),
        ]);
        let local = self.random.pick(&["true", "false", "false"]);
        if self.random.percent(50) {
            return self.statement(&format!("SELECT set_config('{name}', '{value}', {local})"));
        }
        let sql = "SELECT set_config($1, $2, $3::bool)";
        if name == "search_path" && !self.changes_place {
            return;
        }
        self.prepares("", sql, 3);
        let values = [name, value, local].map(str::to_owned).to_vec();
        self.steps.push(Step(vec![
            Message::Parse(String::new(), sql.to_owned()),
            Message::Bind(String::new(), String::new(), values),
            Message::Execute(String::new(), 0),
            Message::Sync,
        ]));
    }

    pub fn switch_role(&mut self) {
        let role = self.role;
        let sql = match self.random.below(8) {
            0..3 => format!("SET ROLE {role}"),
            3 => "RESET ROLE".to_owned(),
            4 => "SET ROLE NONE".to_owned(),
            5 => format!("SET LOCAL ROLE {role}"),
            6 => format!("SET SESSION AUTHORIZATION {role}"),
            _ => "RESET SESSION AUTHORIZATION".to_owned(),
        };
        self.statement(&sql);
    }
}
