//! Scripts of one session, made from a seed.
//!
//! Known and accepted differences, never made:
//! - RESET of what the startup message has set gives the server's default until the transaction is over: sessions with
//!   startup parameters make no RESET inside one.
//! - SQL's EXECUTE does not find statements of the protocol's Parse, nor does PREPARE clash with them: the names are
//!   different (`q…` and `s…`).
//! - `pg_prepared_statements` shows statements of the proxy's own: nobody reads it.
//! - `currval` and `lastval` may fail where they would not: nobody asks for them.
//! - A parameter of one's own that was set and reset is '' where it was set, and NULL elsewhere: read with coalesce.

use super::extended::{Batch, TEXTS};
use crate::support::frames;
use std::collections::HashMap;

/// SplitMix64: the same scripts from the same seed, today and tomorrow.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than that.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % end
    }

    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len())]
    }
}

/// One message.
#[derive(Clone)]
pub struct Message {
    pub says: String,
    pub bytes: Vec<u8>,
    /// It brings a ReadyForQuery.
    pub is_answered: bool,
}

/// Messages in one write.
#[derive(Clone, Default)]
pub struct Step(pub Vec<Message>);

impl Step {
    pub fn add(&mut self, says: String, bytes: Vec<u8>) {
        let is_answered = matches!(bytes[0], b'Q' | b'S');
        self.0.push(Message {
            says,
            bytes,
            is_answered,
        });
    }

    pub fn says(&self) -> String {
        let all: Vec<_> = self.0.iter().map(|message| message.says.as_str()).collect();
        all.join(" | ")
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0
            .iter()
            .flat_map(|message| message.bytes.clone())
            .collect()
    }

    /// ReadyForQuery messages that it brings.
    pub fn answers(&self) -> usize {
        self.0.iter().filter(|message| message.is_answered).count()
    }
}

/// What one session does.
#[derive(Clone)]
pub struct Script {
    pub startup: Vec<(&'static str, String)>,
    pub steps: Vec<Step>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Set,
    Reset,
    SetConfig,
    Local,
    Role,
    Transaction,
    Several,
    Named,
    Pipeline,
    Unnamed,
    Deallocate,
    Discard,
    Do,
    Copy,
    // These pin.
    SqlPrepare,
    Temp,
    Lock,
    Hold,
    Listen,
}

const SHARING: [Kind; 14] = [
    Kind::Set,
    Kind::Reset,
    Kind::SetConfig,
    Kind::Local,
    Kind::Role,
    Kind::Transaction,
    Kind::Several,
    Kind::Named,
    Kind::Pipeline,
    Kind::Unnamed,
    Kind::Deallocate,
    Kind::Discard,
    Kind::Do,
    Kind::Copy,
];

const PINNING: [Kind; 5] = [
    Kind::SqlPrepare,
    Kind::Temp,
    Kind::Lock,
    Kind::Hold,
    Kind::Listen,
];

const PARAMETERS: [(&str, &[&str]); 7] = [
    ("work_mem", &["'3MB'", "'5MB'", "'nonsense'", "4096"]),
    (
        "TimeZone",
        &["'Asia/Tokyo'", "'America/New_York'", "'UTC'", "'No/Where'"],
    ),
    ("DateStyle", &["'German'", "'SQL, DMY'", "'ISO, MDY'"]),
    ("search_path", &["one", "two", "two, one", "nowhere", "''"]),
    ("app.a", &["'a1'", "'it''s'", "''"]),
    ("app.b", &["'b1'", "'b2'"]),
    ("statement_timeout", &["'50s'", "'70s'", "0"]),
];

const READ_ALL: &str = "SELECT current_user, session_user, current_setting('work_mem'), \
    current_setting('TimeZone'), current_setting('DateStyle'), current_setting('search_path'), \
    coalesce(current_setting('app.a', true), ''), coalesce(current_setting('app.b', true), ''), \
    current_setting('statement_timeout'), current_setting('application_name'), current_setting('role')";

pub struct Maker<'a> {
    pub random: Random,
    /// Unlike that of any other session that runs at the same time.
    number: usize,
    role: &'a str,
    in_transaction: bool,
    has_startup: bool,
    had_role: bool,
    /// Names of the protocol, and how many arguments their statement takes, as far as is known.
    pub arguments: HashMap<&'static str, usize>,
    steps: Vec<Step>,
}

/// The script of this seed. `number` tells apart what sessions that run at the same time must not share.
pub fn script(seed: u64, number: usize, role: &str) -> Script {
    let mut random = Random(seed);
    let startup = startup(&mut random);
    let mut kinds: Vec<Kind> = Vec::new();
    kinds.extend(SHARING.iter().filter(|_| random.percent(55)));
    if random.percent(35) {
        kinds.extend(PINNING.iter().filter(|_| random.percent(50)));
    }
    kinds.push(Kind::Set);
    let mut maker = Maker {
        random,
        number,
        role,
        in_transaction: false,
        has_startup: !startup.is_empty(),
        had_role: false,
        arguments: HashMap::new(),
        steps: Vec::new(),
    };
    let length = 10 + maker.random.below(30);
    while maker.steps.len() < length {
        maker.advance(&kinds);
    }
    maker.simple("ROLLBACK");
    maker.simple(READ_ALL);
    Script {
        startup,
        steps: maker.steps,
    }
}

fn startup(random: &mut Random) -> Vec<(&'static str, String)> {
    if random.percent(50) {
        return Vec::new();
    }
    let mut all = Vec::new();
    if random.percent(50) {
        all.push(("TimeZone", "Europe/Paris".to_owned()));
    }
    if random.percent(50) {
        all.push(("application_name", "somebody".to_owned()));
    }
    let options = ["-c app.a=start", "-c work_mem=7MB", "-c search_path=one"];
    let options: Vec<_> = options.into_iter().filter(|_| random.percent(50)).collect();
    if !options.is_empty() {
        all.push(("options", options.join(" ")));
    }
    all
}

impl Maker<'_> {
    fn advance(&mut self, kinds: &[Kind]) {
        if self.in_transaction && self.random.percent(20) {
            return self.end_transaction();
        }
        if self.random.percent(35) {
            return self.read();
        }
        match self.random.pick(kinds) {
            Kind::Set => self.set("SET"),
            Kind::Local => self.set("SET LOCAL"),
            Kind::Reset => self.reset(),
            Kind::SetConfig => self.set_config(),
            Kind::Role => self.switch_role(),
            Kind::Transaction => self.transaction(),
            Kind::Several => self.several(),
            Kind::Named => self.batches(1, &["s1", "s2", "s3"]),
            Kind::Unnamed => self.batches(1, &[""]),
            Kind::Pipeline => self.pipeline(),
            Kind::Deallocate => self.one_of(&["DEALLOCATE s1", "DEALLOCATE s2", "DEALLOCATE ALL"]),
            Kind::Discard => self.one_of(&["DISCARD ALL", "DISCARD PLANS", "DISCARD TEMP"]),
            Kind::Do => self.one_of(&[
                "DO $$ BEGIN PERFORM set_config('app.b', 'done', false); END $$",
                "DO $$ BEGIN SET work_mem = '6MB'; END $$",
                "DO $$ BEGIN SET LOCAL work_mem = '8MB'; END $$",
                "DO $$ BEGIN SET search_path = two; RAISE division_by_zero; END $$",
            ]),
            Kind::Copy => self.one_of(&[
                "COPY (SELECT v FROM t) TO STDOUT",
                "COPY (SELECT generate_series(1, 3)) TO STDOUT",
                "COPY (SELECT 1 / (g - 2) FROM generate_series(1, 3) g) TO STDOUT",
            ]),
            Kind::SqlPrepare => self.one_of(&[
                "PREPARE q1 AS SELECT v FROM t",
                "PREPARE q2(int) AS SELECT $1 + 1",
                "EXECUTE q1",
                "EXECUTE q2(4)",
                "DEALLOCATE q1",
                "DEALLOCATE q2",
                "DEALLOCATE ALL",
            ]),
            Kind::Temp => self.one_of(&[
                "CREATE TEMP TABLE mine (i int)",
                "CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT 1 AS i",
                "INSERT INTO mine VALUES (1), (2)",
                "SELECT count(*) FROM mine",
                "DROP TABLE mine",
            ]),
            Kind::Lock => self.lock(),
            Kind::Hold => self.one_of(&[
                "DECLARE h CURSOR WITH HOLD FOR SELECT generate_series(1, 5)",
                "FETCH 2 FROM h",
                "CLOSE h",
                "CLOSE ALL",
            ]),
            Kind::Listen => self.listen(),
        }
    }

    fn simple(&mut self, sql: &str) {
        let mut step = Step::default();
        step.add(format!("Query {sql}"), frames::query(sql));
        self.steps.push(step);
    }

    fn one_of(&mut self, among: &[&str]) {
        let sql = self.random.pick(among);
        if sql == "DEALLOCATE ALL" || sql == "DISCARD ALL" {
            self.arguments.clear();
        }
        self.simple(sql);
    }

    fn read(&mut self) {
        let sql = match self.random.below(10) {
            0..5 => READ_ALL.to_owned(),
            5..8 => "SELECT v FROM t".to_owned(),
            _ => {
                let (name, _) = self.random.pick(&PARAMETERS);
                if name.contains('.') {
                    format!("SELECT coalesce(current_setting('{name}', true), '')")
                } else {
                    format!("SHOW {name}")
                }
            }
        };
        self.simple(&sql);
    }

    fn set_sql(&mut self, verb: &str) -> String {
        let (name, values) = self.random.pick(&PARAMETERS);
        format!("{verb} {name} = {}", self.random.pick(values))
    }

    fn set(&mut self, verb: &str) {
        let sql = self.set_sql(verb);
        self.simple(&sql);
    }

    fn reset(&mut self) {
        if self.in_transaction && self.has_startup {
            return;
        }
        let (name, _) = self.random.pick(&PARAMETERS);
        let sql = match self.random.below(6) {
            // difference: with another role RESET ALL loses what the startup message has set.
            0..2 if !(self.has_startup && self.had_role) => "RESET ALL".to_owned(),
            0..2 => return,
            2 => format!("SET {name} TO DEFAULT"),
            3 => "SET TIME ZONE LOCAL".to_owned(),
            _ => format!("RESET {name}"),
        };
        self.simple(&sql);
    }

    fn set_config(&mut self) {
        let (name, value) = self.random.pick(&[
            ("app.a", "c1"),
            ("app.b", "c2"),
            ("work_mem", "9MB"),
            ("TimeZone", "Asia/Tokyo"),
            ("search_path", "two"),
            ("work_mem", "bad"),
        ]);
        let local = self.random.pick(&["true", "false", "false"]);
        if self.random.percent(50) {
            return self.simple(&format!("SELECT set_config('{name}', '{value}', {local})"));
        }
        let sql = "SELECT set_config($1, $2, $3::bool)";
        self.arguments.insert("", 3);
        let mut step = Step::default();
        step.add(format!("Parse '' {sql}"), frames::parse("", sql));
        let bind = frames::bind("", "", &[name, value, local]);
        step.add(format!("Bind '' to '' {name} {value} {local}"), bind);
        step.add("Execute".to_owned(), frames::execute("", 0));
        step.add("Sync".to_owned(), frames::sync());
        self.steps.push(step);
    }

    fn switch_role(&mut self) {
        let role = self.role;
        self.had_role = true;
        let sql = match self.random.below(8) {
            0..3 => format!("SET ROLE {role}"),
            3 => "RESET ROLE".to_owned(),
            4 => "SET ROLE NONE".to_owned(),
            5 => format!("SET LOCAL ROLE {role}"),
            6 => format!("SET SESSION AUTHORIZATION {role}"),
            _ => "RESET SESSION AUTHORIZATION".to_owned(),
        };
        self.simple(&sql);
    }

    fn transaction(&mut self) {
        if !self.in_transaction {
            self.in_transaction = true;
            return self.simple("BEGIN");
        }
        match self.random.below(8) {
            0 => self.simple("SELECT 1/0"),
            1..4 => self.one_of(&["SAVEPOINT a", "SAVEPOINT b"]),
            4..6 => self.one_of(&["ROLLBACK TO a", "ROLLBACK TO b", "RELEASE a", "RELEASE b"]),
            _ => self.end_transaction(),
        }
    }

    fn end_transaction(&mut self) {
        self.in_transaction = false;
        self.one_of(&["COMMIT", "COMMIT", "ROLLBACK"]);
    }

    /// Several statements in one simple query: one transaction, unless they say otherwise.
    fn several(&mut self) {
        let mut parts = Vec::new();
        for _ in 0..2 + self.random.below(3) {
            let part = match self.random.below(6) {
                0..3 => self.set_sql("SET"),
                3 => self.set_sql("SET LOCAL"),
                4 => "SELECT v FROM t".to_owned(),
                _ => self
                    .random
                    .pick(&["SELECT 1/0", "SELECT 1", "SHOW work_mem"])
                    .to_owned(),
            };
            parts.push(part);
        }
        if !self.in_transaction && self.random.percent(30) {
            parts.insert(0, "BEGIN".to_owned());
            let at = 1 + self.random.below(parts.len());
            parts.insert(at, self.random.pick(&["COMMIT", "ROLLBACK"]).to_owned());
            self.simple(&parts.join("; "));
            // It may have failed before it came to an end.
            return self.simple("ROLLBACK");
        }
        self.simple(&parts.join("; "));
    }

    fn lock(&mut self) {
        let key = 1000 + self.number;
        let sql = match self.random.below(5) {
            0 => format!("SELECT pg_advisory_lock({key})"),
            1 => format!("SELECT pg_try_advisory_lock({key})"),
            2 => "SELECT pg_advisory_unlock_all()".to_owned(),
            _ => format!("SELECT pg_advisory_unlock({key})"),
        };
        self.simple(&sql);
    }

    fn listen(&mut self) {
        let channel = format!("channel_{}", self.number);
        let sql = match self.random.below(6) {
            0..2 => format!("LISTEN {channel}"),
            2..4 => format!("NOTIFY {channel}, 'hello'"),
            4 => format!("UNLISTEN {channel}"),
            _ => "UNLISTEN *".to_owned(),
        };
        self.simple(&sql);
    }

    fn batches(&mut self, count: usize, names: &[&'static str]) {
        let mut batch = Batch::default();
        for _ in 0..count {
            batch.add(self, names);
        }
        self.steps.push(batch.0);
    }

    /// Batches in one write, some with transaction control in them.
    fn pipeline(&mut self) {
        let count = 2 + self.random.below(4);
        self.batches(count, &["s1", "s2", "s3", ""]);
        // Whether it has begun a transaction is hard to tell.
        self.in_transaction = false;
        self.one_of(&["COMMIT", "ROLLBACK"]);
    }

    /// A text, and how many arguments it takes.
    pub fn text(&mut self) -> (&'static str, usize) {
        self.random.pick(TEXTS)
    }
}
