//! What the words of a statement mean: the leading ones by their place, a few names wherever they stand.
//! The rules are those of PostgreSQL's grammar (src/backend/parser/gram.y).

use super::Effects;

/// A word as it stands in the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word<'a> {
    /// Folded to lower case if it was not quoted; empty if it is longer than anything looked for.
    pub(super) name: &'a [u8],
    /// False if it is quoted, or a dot stands before or after it: then it is part of a name.
    pub(super) may_be_keyword: bool,
    /// A dot stands before or after it.
    pub(super) is_dotted: bool,
}

/// Where in one statement we are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Place {
    /// No word yet.
    #[default]
    Start,
    /// EXPLAIN and its options so far, in parentheses or not.
    Explain,
    Set,
    SetLocal,
    SetSession,
    /// SET name …: DEFAULT may follow.
    SetValue,
    SetTime,
    SetTimeZone,
    /// CREATE, with only OR REPLACE, LOCAL or GLOBAL so far.
    Create,
    /// The rest of a CREATE: AS EXECUTE may follow, or LANGUAGE.
    CreateRest,
    CreateLanguage,
    CreateAs,
    Prepare,
    /// PREPARE TRANSACTION: a string follows, or `transaction` was the statement's name.
    PrepareTransaction,
    Declare,
    DeclareWith,
    /// SELECT, WITH, VALUES …: INTO TEMP may follow.
    Query,
    Into,
    StartWord,
    /// COMMIT, END, ROLLBACK, ABORT: AND CHAIN may follow.
    End,
    EndAnd,
    Other,
}

/// What the statements so far leave behind.
#[derive(Debug, Default)]
pub(super) struct Leading {
    effects: Effects,
    place: Place,
    /// This statement changes settings, if only until the transaction ends.
    sets: bool,
    /// The word UPDATE stands in this statement.
    updates: bool,
    /// `pg_settings` is named in this statement.
    names_pg_settings: bool,
    /// A string of this statement speaks of pg_temp, or may do so.
    string_with_pg_temp: bool,
}

impl Leading {
    pub(super) fn effects(&self) -> Effects {
        self.effects
    }

    /// The next word of the statement.
    pub(super) fn word(&mut self, word: Word<'_>) {
        self.name(word.name);
        let keyword = if word.may_be_keyword { word.name } else { b"" };
        self.updates |= keyword == b"update";
        // SET session AUTHORIZATION …, and whatever is no keyword of SET, names a parameter.
        if matches!(self.place, Place::Set | Place::SetLocal | Place::SetSession)
            && !(word.is_dotted || is_harmless(word.name))
        {
            self.effects |= Effects::MEANING;
        }
        self.place = self.next(keyword);
    }

    /// A string begins.
    pub(super) fn string(&mut self) {
        if self.place == Place::PrepareTransaction {
            self.place = Place::Other;
        }
    }

    /// A string had pg_temp in it, or escapes that may hide it.
    pub(super) fn string_with_pg_temp(&mut self) {
        self.string_with_pg_temp = true;
    }

    /// A `U&"…"`: which name it is depends on the UESCAPE that may follow.
    pub(super) fn unreadable_name(&mut self) {
        self.effects |= Effects::UNREADABLE_NAME;
        self.place = self.next(b"");
    }

    /// The rest of the text can't be read.
    pub(super) fn unreadable_text(&mut self) {
        self.effects |= Effects::UNREADABLE_TEXT;
    }

    /// A semicolon, or the end of the text.
    pub(super) fn end_statement(&mut self) {
        if self.updates && self.names_pg_settings {
            // The view has a rule that calls set_config (src/backend/catalog/system_views.sql).
            self.effects |= Effects::SETTINGS | Effects::MEANING;
            self.sets = true;
        }
        if self.sets && self.string_with_pg_temp {
            // With pg_temp first in search_path, a plain CREATE TABLE makes a temporary one.
            self.effects |= Effects::TEMP_OBJECT;
        }
        *self = Self {
            effects: self.effects,
            ..Self::default()
        };
    }

    /// Names of functions and schemas count wherever they stand.
    fn name(&mut self, name: &[u8]) {
        if !matches!(name, [b's' | b'p' | b'n' | b'c' | b'l', ..]) {
            return;
        }
        self.effects |= match name {
            b"set_config" => {
                self.sets = true;
                Effects::SET_CONFIG
            }
            b"pg_settings" => {
                self.names_pg_settings = true;
                return;
            }
            b"pg_advisory_lock"
            | b"pg_advisory_lock_shared"
            | b"pg_try_advisory_lock"
            | b"pg_try_advisory_lock_shared" => Effects::ADVISORY_LOCK,
            b"pg_prepared_statements" => Effects::STATEMENTS_SHOWN,
            b"nextval" | b"setval" => Effects::SEQUENCE_WRITE,
            b"currval" | b"lastval" => Effects::SEQUENCE_READ,
            b"pg_notify" => Effects::NOTIFY,
            b"pg_listening_channels" => Effects::LISTENING_READ,
            _ if !name.starts_with(b"pg_") => return,
            _ if name.starts_with(b"pg_advisory_unlock") => Effects::MAY_RELEASE,
            _ if is_temp_schema(name) => Effects::TEMP_OBJECT,
            _ => return,
        };
    }

    /// The next word of a statement; empty if it can't be a keyword.
    fn next(&mut self, word: &[u8]) -> Place {
        match (self.place, word) {
            (Place::Start, _) => self.first_word(word),
            (Place::Explain, _) => self.explained(word),
            (
                Place::Set
                | Place::SetLocal
                | Place::SetSession
                | Place::SetValue
                | Place::SetTime
                | Place::SetTimeZone,
                _,
            ) => self.next_of_set(word),
            // CREATE [OR REPLACE] [GLOBAL | LOCAL] TEMP …
            (Place::Create, b"temp" | b"temporary") => {
                self.found(Effects::TEMP_OBJECT, Place::CreateRest)
            }
            (Place::Create, b"or" | b"replace" | b"local" | b"global") => Place::Create,
            (Place::Create | Place::CreateRest, b"as") => Place::CreateAs,
            (Place::CreateAs, b"execute") => self.found(Effects::SQL_EXECUTE, Place::Other),
            // A function in C: its library is loaded to see that it is there (fmgr_c_validator of pg_proc.c).
            (Place::CreateRest | Place::CreateAs, b"language") => Place::CreateLanguage,
            (Place::CreateLanguage, b"c") => self.found(Effects::LOAD, Place::CreateRest),
            (Place::Create | Place::CreateRest | Place::CreateAs | Place::CreateLanguage, _) => {
                Place::CreateRest
            }
            (Place::Prepare, b"transaction") => Place::PrepareTransaction,
            (Place::Prepare | Place::PrepareTransaction, _) => {
                self.found(Effects::SQL_PREPARE, Place::Other)
            }
            (Place::Into, b"temp" | b"temporary") => self.found(Effects::TEMP_OBJECT, Place::Query),
            (Place::Into, b"local" | b"global") => Place::Into,
            (Place::Query, b"into") => Place::Into,
            (Place::Query | Place::Into, _) => Place::Query,
            (Place::Declare, b"with") => Place::DeclareWith,
            (Place::DeclareWith, b"hold") => self.found(Effects::HOLD_CURSOR, Place::Other),
            (Place::Declare, b"for") => Place::Other,
            (Place::Declare | Place::DeclareWith, _) => Place::Declare,
            (Place::StartWord, b"transaction") => self.found(Effects::TRANSACTION, Place::Other),
            (Place::End, b"and") => Place::EndAnd,
            (Place::End, _) => Place::End,
            (Place::EndAnd, b"chain") => self.found(Effects::TRANSACTION, Place::Other),
            (Place::StartWord | Place::EndAnd | Place::Other, _) => Place::Other,
        }
    }

    fn first_word(&mut self, word: &[u8]) -> Place {
        let effects = match word {
            b"set" => {
                self.sets = true;
                return Place::Set;
            }
            b"explain" => return Place::Explain,
            b"prepare" => return Place::Prepare,
            b"start" => return Place::StartWord,
            b"commit" | b"end" | b"rollback" | b"abort" => return Place::End,
            b"reset" => Effects::SETTINGS | Effects::RESET | Effects::MEANING,
            b"listen" => Effects::LISTEN,
            b"notify" => Effects::NOTIFY,
            b"load" => Effects::LOAD,
            b"begin" => Effects::TRANSACTION,
            b"do" | b"call" => Effects::OPAQUE,
            b"deallocate" => Effects::MAY_RELEASE | Effects::SQL_DEALLOCATE,
            b"discard" => Effects::MAY_RELEASE | Effects::MEANING | Effects::DISCARD,
            b"unlisten" => Effects::MAY_RELEASE | Effects::UNLISTEN,
            b"drop" | b"close" => Effects::MAY_RELEASE,
            _ => {
                return match self.explained(word) {
                    Place::Explain => Place::Other,
                    place => place,
                };
            }
        };
        self.found(effects, Place::Other)
    }

    /// A word after EXPLAIN: an option, or the first of what is explained. No option is called like a statement.
    fn explained(&mut self, word: &[u8]) -> Place {
        match word {
            b"select" | b"with" | b"values" | b"table" => Place::Query,
            b"create" => Place::Create,
            b"declare" => Place::Declare,
            b"execute" => self.found(Effects::SQL_EXECUTE, Place::Other),
            b"insert" | b"update" | b"delete" | b"merge" | b"refresh" => Place::Other,
            _ => Place::Explain,
        }
    }

    fn next_of_set(&mut self, word: &[u8]) -> Place {
        match (self.place, word) {
            (Place::Set, b"transaction" | b"constraints") => Place::Other,
            (Place::Set, b"local") => Place::SetLocal,
            (Place::SetLocal, _) => Place::Other,
            (Place::Set | Place::SetSession, b"time") => {
                self.found(Effects::SETTINGS, Place::SetTime)
            }
            (Place::Set, b"session") => self.found(Effects::SETTINGS, Place::SetSession),
            (Place::Set, _) => self.found(Effects::SETTINGS, Place::SetValue),
            (Place::SetTime, b"zone") => Place::SetTimeZone,
            (_, b"default") | (Place::SetTimeZone, b"local") => {
                self.found(Effects::RESET, Place::Other)
            }
            _ => Place::SetValue,
        }
    }

    fn found(&mut self, effects: Effects, place: Place) -> Place {
        self.effects |= effects;
        place
    }
}

/// No parameter, or one that changes nothing in what a text means when it is prepared; all others are thought to.
fn is_harmless(name: &[u8]) -> bool {
    let keyword: &[&[u8]] = &[
        b"local",
        b"session",
        b"transaction",
        b"constraints",
        b"characteristics",
    ];
    keyword.contains(&name) || std::str::from_utf8(name).is_ok_and(super::is_harmless)
}

/// `pg_temp` is the session's own schema, and so is one `pg_temp_…` with a number.
fn is_temp_schema(name: &[u8]) -> bool {
    match name.strip_prefix(b"pg_temp") {
        Some([]) => true,
        Some([b'_', number @ ..]) => !number.is_empty() && number.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}
