//! Scripts of one session, made from a seed.
//!
//! Known and accepted differences, never made (README, "What differs"):
//! - `pg_prepared_statements` has other times: nobody reads it.
//! - `pg_listening_channels()` does not show shared channels inside a transaction block: nobody asks.
//! - Behind a RESET of what the startup message has set, in the same message or batch, the server's default is seen: RESET
//!   comes alone.
//! - The server's schema for temporary objects is there on a backend that has had some: nobody names pg_temp.
//! - DEALLOCATE counts when it is prepared without a name, not when it runs; and an unnamed statement with a literal in it
//!   is an error where the proxy can't tell how the literal was read. Such a statement is used in its own batch alone.
//! - Where names are looked up again (search_path, role), PostgreSQL reads literals again, too, and the proxy does not:
//!   a session either changes these or has literals in statements with a name.
//! - DISCARD PLANS makes the backend read literals again, also those of statements that others share: nobody sends it.
//! - SQL's EXECUTE of a statement of the protocol's speaks of the proxy's name for it when its arguments are wrong; and an
//!   error in the text of a PREPARE whose name is in use points elsewhere: the names are different (`q…` and `s…`).
//! - DEALLOCATE ALL and DISCARD ALL do not count for what is behind them in the same batch: nothing is.
//! - An unnamed statement that another backend prepares anew after DDL has the new types: those about the table of one's own
//!   are used in their own batch alone.
//! - A parameter of one's own that was set and reset is '' where it was set, and NULL elsewhere: read with coalesce.
//! - What a function called in a SELECT sets for good is not seen: functions here set what ends with them, or with the
//!   transaction; DO and CALL set for good.

mod extended;
mod objects;
mod settings;

use super::script::{Message, Script, Step};
use extended::Batch;
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
    Function,
    Copy,
    Cursor,
    Ddl,
    // These pin.
    Call,
    SqlPrepare,
    Temp,
    Lock,
    Hold,
    Listen,
    Sequence,
}

const SHARING: [Kind; 17] = [
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
    Kind::Function,
    Kind::Copy,
    Kind::Cursor,
    Kind::Ddl,
];

const PINNING: [Kind; 7] = [
    Kind::Call,
    Kind::SqlPrepare,
    Kind::Temp,
    Kind::Lock,
    Kind::Hold,
    Kind::Listen,
    Kind::Sequence,
];

/// Names of the protocol's statements.
const NAMES: [&str; 3] = ["s1", "s2", "s3"];

struct Maker<'a> {
    random: Random,
    role: &'a str,
    /// Of statements that are sent by the extended protocol.
    extended_percent: usize,
    in_transaction: bool,
    /// It changes where names are looked up, or by whom; else it uses literals in statements that have a name.
    changes_place: bool,
    /// There may be an unnamed statement that no later batch may use.
    leaves_unnamed: bool,
    /// It has a table of its own.
    has_table: bool,
    /// Names of the protocol, and how many arguments their statement takes, as far as is known.
    arguments: HashMap<&'static str, usize>,
    steps: Vec<Step>,
}

/// The script of this seed.
pub fn script(seed: u64, role: &str) -> Script {
    let mut random = Random(seed);
    let startup = settings::startup(&mut random);
    let mut kinds: Vec<Kind> = Vec::new();
    kinds.extend(SHARING.iter().filter(|_| random.percent(50)));
    if random.percent(35) {
        kinds.extend(PINNING.iter().filter(|_| random.percent(40)));
    }
    kinds.push(Kind::Set);
    let mut maker = Maker {
        extended_percent: random.pick(&[0, 10, 50]),
        changes_place: kinds.contains(&Kind::Role) || random.percent(50),
        random,
        role,
        in_transaction: false,
        leaves_unnamed: false,
        has_table: kinds.contains(&Kind::Ddl),
        arguments: HashMap::new(),
        steps: Vec::new(),
    };
    let length = 8 + maker.random.below(28);
    if maker.has_table {
        maker.steps.push(Step::query(objects::CREATE));
    }
    while maker.steps.len() < length {
        maker.advance(&kinds);
    }
    maker.steps.push(Step::query("ROLLBACK"));
    maker.steps.push(Step::query(settings::READ_ALL));
    if maker.has_table {
        maker.steps.push(Step::query(objects::DROP));
    }
    Script {
        startup,
        steps: maker.steps,
    }
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
            Kind::Named => self.batches(1, &NAMES),
            Kind::Unnamed => self.batches(1, &[""]),
            Kind::Pipeline => self.pipeline(),
            Kind::Deallocate => {
                self.one_of(&["DEALLOCATE s1", "DEALLOCATE PREPARE s2", "DEALLOCATE ALL"]);
            }
            Kind::Discard => self.one_of(&["DISCARD ALL", "DISCARD TEMP"]),
            Kind::Do => self.one_of(settings::DOES),
            Kind::Call => self.one_of(&["CALL public.sets('called')", "CALL public.sets(NULL)"]),
            Kind::Function => {
                self.one_of(&["SELECT public.within(1)", "SELECT public.sets_local()"]);
            }
            Kind::Copy => self.copy(),
            Kind::Cursor => self.one_of(objects::CURSOR),
            Kind::Ddl => self.one_of(objects::DDL),
            Kind::SqlPrepare => self.one_of(objects::SQL_PREPARE),
            Kind::Temp => self.one_of(objects::TEMP),
            Kind::Lock => self.one_of(objects::LOCK),
            Kind::Hold => self.one_of(objects::HOLD),
            Kind::Listen => self.one_of(objects::LISTEN),
            Kind::Sequence => self.sequence(),
        }
    }

    /// Literals are read again where names are looked up again: when, the proxy can't know.
    fn fits(&self, name: &str, sql: &str) -> bool {
        let changes = ["SET", "RESET", "DO", "SELECT set_config"];
        let place = ["search_path", " ROLE", "AUTHORIZATION"];
        match self.changes_place {
            true => name.is_empty() || !sql.contains("'::"),
            false => {
                !changes.iter().any(|verb| sql.starts_with(verb))
                    || !place.iter().any(|name| sql.contains(name))
            }
        }
    }

    /// One statement, by either protocol.
    fn statement(&mut self, sql: &str) {
        if !self.fits("", sql) {
            return;
        }
        if !self.random.percent(self.extended_percent) {
            return self.steps.push(Step::query(sql));
        }
        self.prepares("", sql, 0);
        self.steps.push(Step(vec![
            Message::Parse(String::new(), sql.to_owned()),
            Message::Bind(String::new(), String::new(), Vec::new()),
            Message::DescribePortal(String::new()),
            Message::Execute(String::new(), 0),
            Message::Sync,
        ]));
    }

    /// An unnamed statement is used by a later batch only where it means the same there.
    fn prepares(&mut self, name: &'static str, sql: &str, arguments: usize) {
        let varies = sql.contains(['\'', '{'])
            || sql.starts_with("DEALLOCATE")
            || sql.starts_with("DISCARD");
        if name.is_empty() && varies {
            self.arguments.remove(name);
            self.leaves_unnamed = true;
        } else {
            self.arguments.insert(name, arguments);
        }
    }

    fn one_of(&mut self, among: &[&str]) {
        let sql = self.random.pick(among);
        if sql == "DEALLOCATE ALL" || sql == "DISCARD ALL" {
            self.arguments.clear();
        }
        self.statement(sql);
    }

    fn read(&mut self) {
        match self.random.below(12) {
            0..5 => self.statement(settings::READ_ALL),
            5..8 => self.statement("SELECT v FROM t"),
            8..10 => self.one_of(objects::READ),
            _ => {
                let sql = settings::show(&mut self.random);
                self.statement(&sql);
            }
        }
    }

    fn transaction(&mut self) {
        if !self.in_transaction {
            self.in_transaction = true;
            return self.one_of(&["BEGIN", "BEGIN", "BEGIN", "START TRANSACTION READ ONLY"]);
        }
        match self.random.below(8) {
            0 => self.statement("SELECT 1/0"),
            1..4 => self.one_of(&["SAVEPOINT a", "SAVEPOINT b"]),
            4..6 => self.one_of(&["ROLLBACK TO a", "ROLLBACK TO b", "RELEASE a", "RELEASE b"]),
            6 => self.one_of(&["COMMIT AND CHAIN", "ROLLBACK AND CHAIN", "BEGIN"]),
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
        let begins = !self.in_transaction && self.random.percent(30);
        if begins {
            parts.insert(0, "BEGIN".to_owned());
            let at = 1 + self.random.below(parts.len());
            parts.insert(at, self.random.pick(&["COMMIT", "ROLLBACK"]).to_owned());
        }
        self.steps.push(Step::query(&parts.join("; ")));
        if begins {
            // It may have failed before it came to an end.
            self.steps.push(Step::query("ROLLBACK"));
        }
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
        let [s1, s2, s3] = NAMES;
        self.batches(count, &[s1, s2, s3, ""]);
        // Whether it has begun a transaction is hard to tell.
        self.in_transaction = false;
        self.one_of(&["COMMIT", "ROLLBACK"]);
    }
}
