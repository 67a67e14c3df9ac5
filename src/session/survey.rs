//! What a session has left on its backend, in the server's own words.
//!
//! SQL's rules for what a SET or a temporary table outlives (rollback, savepoints, ON COMMIT DROP, functions) are the
//! server's: it is asked instead of modelled, at the end of a transaction in which something may have changed. Pure: no
//! I/O; the relay sends [`sql`] and hands the rows over.

use super::listen::Channel;
use super::pin::{PinReason, PinReasons};
use crate::backend::settings::{Settings, literal};

/// Asks for everything; each row is a kind, a name, a value.
///
/// - `s`: a run-time parameter set in the session. Values in hexadecimal of the server's encoding: what a client sees
///   depends on its client_encoding, what a replay sends does not. pg_settings leaves out role and session_authorization
///   (GUC_NO_SHOW_ALL, src/backend/utils/misc/guc_tables.c). SET TRANSACTION's parameters keep their source after the
///   transaction, but not their value.
/// - `c`: a channel that is listened to, in hexadecimal of the server's encoding, too.
/// - `p`: a statement prepared by SQL, and the text that prepared it, if it is not long.
/// - `l`: a reason to keep the backend. Statements of our own are shared, not left. Whatever can be made in a schema
///   depends on it; so the server, too, finds what to remove at the end (RemoveTempRelations of namespace.c).
const SQL: &str = "\
SELECT 's', name, pg_catalog.encode(pg_catalog.convert_to(setting, pg_catalog.getdatabaseencoding()), 'hex') \
 FROM pg_catalog.pg_settings WHERE source = 'session' \
 AND name NOT IN ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable') \
UNION ALL SELECT 's', 'role', pg_catalog.encode(pg_catalog.convert_to(pg_catalog.current_setting('role'), \
 pg_catalog.getdatabaseencoding()), 'hex') WHERE pg_catalog.current_setting('role') <> 'none' \
UNION ALL SELECT 's', 'session_authorization', pg_catalog.encode(pg_catalog.convert_to(session_user::pg_catalog.text, \
 pg_catalog.getdatabaseencoding()), 'hex') \
UNION ALL SELECT 'p', name, pg_catalog.encode(pg_catalog.convert_to(\
 CASE WHEN pg_catalog.length(statement) < 8000 THEN statement ELSE '' END, pg_catalog.getdatabaseencoding()), 'hex') \
 FROM pg_catalog.pg_prepared_statements WHERE from_sql \
UNION ALL SELECT 'l', 'named_statement', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_prepared_statements \
 WHERE NOT from_sql AND name NOT LIKE 'pgsluice\\_%' AND name <> '') \
UNION ALL SELECT 'l', 'temp_object', '' WHERE pg_catalog.pg_my_temp_schema() <> 0 AND EXISTS (SELECT \
 FROM pg_catalog.pg_depend WHERE refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass \
 AND refobjid = pg_catalog.pg_my_temp_schema()) \
UNION ALL SELECT 'l', 'hold_cursor', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable) \
UNION ALL SELECT 'c', '', pg_catalog.encode(pg_catalog.convert_to(c, pg_catalog.getdatabaseencoding()), 'hex') \
 FROM pg_catalog.pg_listening_channels() c \
UNION ALL SELECT 'l', 'advisory_lock', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_locks \
 WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid())";

/// The question, with custom parameters that must be asked for by name.
pub fn sql<'a>(custom: impl Iterator<Item = &'a str>) -> String {
    let mut sql = String::from(SQL);
    for name in custom {
        let name = literal(name);
        let value = format!("pg_catalog.current_setting({name}, true)");
        sql.push_str(&format!(
            " UNION ALL SELECT 's', {name}, pg_catalog.encode(pg_catalog.convert_to({value}, \
             pg_catalog.getdatabaseencoding()), 'hex') WHERE {value} IS NOT NULL AND NOT EXISTS \
             (SELECT FROM pg_catalog.pg_settings WHERE pg_catalog.lower(name) = {name})"
        ));
    }
    sql
}

/// What a session's parameters and channels may hold, names and values together; with more it keeps its backend.
const STATE_BYTES_MAX: usize = 64 * 1024;

/// Statements prepared by SQL that are looked at; with more a session keeps its backend.
const STATEMENTS_MAX: usize = 1000;

/// Reasons that a survey can find, or find gone.
pub const SURVEYED: [PinReason; 7] = [
    PinReason::Settings,
    PinReason::NamedStatement,
    PinReason::SqlPrepare,
    PinReason::TempObject,
    PinReason::HoldCursor,
    PinReason::Listen,
    PinReason::AdvisoryLock,
];

/// A survey that is being answered.
#[derive(Debug, Default)]
pub struct Survey {
    settings: Vec<(String, String)>,
    channels: Vec<Channel>,
    sql_prepared: Vec<(String, String)>,
    bytes: usize,
    left: PinReasons,
    failed: bool,
}

/// What a survey found.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// Every run-time parameter set in the session.
    pub settings: Settings,
    /// The channels it listens to.
    pub channels: Vec<Channel>,
    /// Statements prepared by SQL: names and texts.
    pub sql_prepared: Vec<(String, String)>,
    /// Reasons to keep the backend.
    pub left: PinReasons,
}

impl Survey {
    /// A row has come; its DataRow's body.
    pub fn row(&mut self, body: &[u8]) {
        let Some([kind, name, value]) = columns(body) else {
            self.failed = true;
            return;
        };
        let text = || decode_hex(value).and_then(|value| String::from_utf8(value).ok());
        match (kind, text()) {
            ("c", _) => match decode_hex(value) {
                Some(channel) => {
                    self.left.insert(PinReason::Listen);
                    self.bytes += channel.len();
                    self.failed |= self.bytes > STATE_BYTES_MAX;
                    self.channels.push(channel.into());
                }
                None => self.failed = true,
            },
            ("s", Some(value)) => {
                self.bytes += name.len() + value.len();
                self.failed |= self.bytes > STATE_BYTES_MAX;
                self.settings.push((name.to_ascii_lowercase(), value));
            }
            ("p", Some(value)) => {
                self.failed |= self.sql_prepared.len() >= STATEMENTS_MAX;
                if !self.failed {
                    self.sql_prepared.push((name.to_owned(), value));
                }
            }
            ("l", _) => match SURVEYED.iter().find(|reason| reason.label() == name) {
                Some(reason) => self.left.insert(*reason),
                None => self.failed = true,
            },
            _ => self.failed = true,
        }
    }

    /// The server refused it, or sent what could not be read.
    pub fn fail(&mut self) {
        self.failed = true;
    }

    /// The answer is complete; `None` if it can't be relied on. `login` is the role the backend has logged in as.
    pub fn finish(self, login: &str) -> Option<Found> {
        if self.failed {
            return None;
        }
        let own =
            |(name, value): &(String, String)| name == "session_authorization" && value == login;
        let settings = self.settings.into_iter().filter(|setting| !own(setting));
        Some(Found {
            settings: Settings::from_pairs(settings),
            channels: self.channels,
            sql_prepared: self.sql_prepared,
            left: self.left,
        })
    }
}

/// Three text columns of a DataRow.
fn columns(body: &[u8]) -> Option<[&str; 3]> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    if u16::from_be_bytes(*count) != 3 {
        return None;
    }
    let mut columns = [""; 3];
    for column in &mut columns {
        let (len, after) = rest.split_first_chunk::<4>()?;
        let len = usize::try_from(i32::from_be_bytes(*len)).ok()?;
        *column = std::str::from_utf8(after.get(..len)?).ok()?;
        rest = after.get(len..)?;
    }
    Some(columns)
}

/// Of parameters only text in UTF-8 is kept; a value in another encoding makes the survey fail, and the session keeps its
/// backend.
fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    text.as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: &[&str]) -> Vec<u8> {
        let mut body = (columns.len() as u16).to_be_bytes().to_vec();
        for column in columns {
            body.extend_from_slice(&(column.len() as u32).to_be_bytes());
            body.extend_from_slice(column.as_bytes());
        }
        body
    }

    #[test]
    fn rows_become_settings_and_reasons() {
        let mut survey = Survey::default();
        survey.row(&row(&["s", "TimeZone", "555443"]));
        survey.row(&row(&["s", "session_authorization", "616e6e"]));
        survey.row(&row(&["c", "", "e4"]));
        let found = survey.finish("ann").unwrap();
        let expected = Settings::from_pairs([("timezone".into(), "UTC".into())]);
        assert_eq!(found.settings, expected);
        assert_eq!(found.left.iter().collect::<Vec<_>>(), [PinReason::Listen]);
        assert_eq!(found.channels, [Channel::from(&b"\xe4"[..])]);
    }

    #[test]
    fn another_session_user_is_a_setting() {
        let mut survey = Survey::default();
        survey.row(&row(&["s", "session_authorization", "626f62"]));
        let found = survey.finish("ann").unwrap();
        let expected = Settings::from_pairs([("session_authorization".into(), "bob".into())]);
        assert_eq!(found.settings, expected);
    }

    #[test]
    fn what_cannot_be_read_is_not_believed() {
        for bad in [
            row(&["s", "a", "5"]),
            row(&["s", "a", "xx"]),
            row(&["s", "a", "ff"]),
            row(&["l", "nonsense", ""]),
            row(&["s", "a"]),
            b"\0\x03\0\0\0\x01s\xff\xff\xff\xff".to_vec(),
            vec![],
        ] {
            let mut survey = Survey::default();
            survey.row(&bad);
            assert_eq!(survey.finish("ann"), None, "{bad:?}");
        }
    }
}
