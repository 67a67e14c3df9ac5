//! `/pins`: which statements make sessions keep their database connections, and what to change; as text and as JSON.

use crate::session::digest::Digest;
use crate::session::pin::PinReason;
use crate::session::pin_book::PinRecord;
use serde::Serialize;
use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[derive(Serialize)]
struct Page<'a> {
    pins: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    target: &'a str,
    database: &'a str,
    user: &'a str,
    reason: &'static str,
    digest: Option<String>,
    statement: Option<&'a str>,
    pinned_now: u32,
    pins: u64,
    filtered: u64,
    pinned_seconds: f64,
    /// Seconds since 1970.
    first_seen: u64,
    last_seen: u64,
    advice: &'static str,
}

impl<'a> From<&'a PinRecord> for Line<'a> {
    fn from(record: &'a PinRecord) -> Self {
        Self {
            target: record.pool.target.as_str(),
            database: record.pool.database.as_str(),
            user: record.pool.role.as_str(),
            reason: record.reason.label(),
            digest: record.digest.as_ref().map(Digest::to_string),
            statement: record.digest.as_ref().map(Digest::text),
            pinned_now: record.now,
            pins: record.pins,
            filtered: record.filtered,
            pinned_seconds: record.held.as_secs_f64(),
            first_seen: since_1970(record.first_seen),
            last_seen: since_1970(record.last_seen),
            advice: record.reason.advice(),
        }
    }
}

/// For programs.
pub(super) fn json(records: &[PinRecord]) -> String {
    let page = Page {
        pins: records.iter().map(Line::from).collect(),
    };
    serde_json::to_string(&page).unwrap_or_else(|error| {
        tracing::error!(%error, "the pins could not be written");
        String::from("{}")
    }) + "\n"
}

/// For people.
pub(super) fn text(records: &[PinRecord]) -> String {
    if records.is_empty() {
        return "no session has been pinned\n".into();
    }
    let mut page = String::new();
    for record in records {
        // Writing to a String does not fail.
        let _ = write_record(&mut page, record);
    }
    page
}

fn write_record(page: &mut String, record: &PinRecord) -> fmt::Result {
    let reason = record.reason.label();
    write!(page, "{}  {reason}  ", OneLine(&record.pool.to_string()))?;
    match &record.digest {
        Some(digest) => writeln!(page, "{digest}\n  {}", digest.text())?,
        None if record.reason == PinReason::SessionMode => writeln!(page, "-")?,
        None => writeln!(page, "-\n  (no statement shows what left it)")?,
    }
    write!(
        page,
        "  pinned now: {}, times: {}, in all: {:.1} s, first seen {} s ago, last {} s ago",
        record.now,
        record.pins,
        record.held.as_secs_f64(),
        seconds_ago(record.first_seen),
        seconds_ago(record.last_seen),
    )?;
    if record.filtered > 0 {
        write!(page, ", not pinned (filtered): {}", record.filtered)?;
    }
    writeln!(page, "\n  to avoid it: {}\n", record.reason.advice())
}

fn seconds_ago(time: SystemTime) -> u64 {
    // The clock may have been set back.
    let ago = SystemTime::now().duration_since(time);
    ago.unwrap_or(Duration::ZERO).as_secs()
}

fn since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs()
}

/// A database may be called anything: it must not look like lines of ours. (A digest's text has no control characters.)
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        self.0.chars().try_for_each(|c| f.write_char(shown(c)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Database, PoolKey, Role, TargetName};

    fn record(digest: Option<Digest>) -> PinRecord {
        PinRecord {
            pool: PoolKey {
                target: TargetName::new("primary"),
                database: Database::new("a\nb"),
                role: Role::new("app"),
            },
            reason: PinReason::Listen,
            digest,
            now: 1,
            pins: 3,
            filtered: 2,
            held: Duration::from_millis(1250),
            first_seen: SystemTime::now() - Duration::from_secs(60),
            last_seen: UNIX_EPOCH + Duration::from_secs(1_000_000),
        }
    }

    #[test]
    fn people_read_what_to_change() {
        let page = text(&[record(Some(Digest::of(b"LISTEN a", true))), record(None)]);
        let lines: Vec<_> = page.lines().collect();
        assert!(
            lines[0].starts_with("primary/a\u{fffd}b/app  listen  "),
            "{page}"
        );
        assert_eq!(lines[1], "  listen a");
        let expected = "  pinned now: 1, times: 3, in all: 1.2 s, first seen 60 s ago, last ";
        assert!(lines[2].starts_with(expected), "{page}");
        assert!(lines[2].ends_with("filtered): 2"), "{page}");
        assert_eq!(
            lines[3],
            format!("  to avoid it: {}", PinReason::Listen.advice())
        );
        assert_eq!(lines[6], "  (no statement shows what left it)");
    }

    #[test]
    fn programs_read_json() {
        let page = json(&[
            record(Some(Digest::of(b"LISTEN \"a\"", true))),
            record(None),
        ]);
        let page: serde_json::Value = serde_json::from_str(&page).unwrap();
        let pin = &page["pins"][0];
        assert_eq!(pin["database"], "a\nb");
        assert_eq!(pin["reason"], "listen");
        assert_eq!(pin["statement"], "listen \"a\"");
        assert_eq!(pin["digest"].as_str().map(str::len), Some(16));
        assert_eq!((&pin["pinned_now"], &pin["pins"]), (&1.into(), &3.into()));
        assert_eq!(pin["pinned_seconds"], 1.25);
        assert_eq!(pin["last_seen"], 1_000_000);
        assert!(page["pins"][1]["digest"].is_null());
    }
}
