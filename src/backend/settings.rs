//! Run-time parameters a client asked for, and the SQL that gives them to a backend.

use std::fmt::Write;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Run-time parameters by lower-case name, sorted. Cheap to clone and, where shared, to compare.
#[derive(Clone, Debug)]
pub struct Settings(Arc<[(String, String)]>);

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Eq for Settings {}

impl Default for Settings {
    fn default() -> Self {
        Self::empty()
    }
}

impl Hash for Settings {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Settings {
    /// None: what every fresh backend has.
    pub fn empty() -> Self {
        Self(Arc::default())
    }

    /// From names (in any case) and values; the last of a name counts, as in PostgreSQL's startup packet.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut all = std::collections::BTreeMap::new();
        for (name, value) in pairs {
            all.insert(name.to_ascii_lowercase(), value);
        }
        Self(all.into_iter().collect())
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// These without one whose value the server takes and reports as it is (printable ASCII of at most NAMEDATALEN - 1
    /// bytes; it changes and cuts others, src/backend/utils/misc/guc_tables.c, `check_application_name`).
    pub fn without_plain(&self, name: &str) -> (Settings, Option<String>) {
        let is_plain =
            |value: &&str| value.len() < 64 && value.bytes().all(|b| matches!(b, b' '..=b'~'));
        let Some(plain) = self.value(name).filter(is_plain) else {
            return (self.clone(), None);
        };
        let others = self.0.iter().filter(|(other, _)| other != name).cloned();
        (Self(others.collect()), Some(plain.to_owned()))
    }

    /// Those whose names pass.
    pub fn filtered(&self, passes: impl Fn(&str) -> bool) -> Settings {
        match self.0.iter().all(|(name, _)| passes(name)) {
            true => self.clone(),
            false => Self(self.0.iter().filter(|it| passes(&it.0)).cloned().collect()),
        }
    }

    /// Those whose names belong to the first part, and the others.
    pub fn split(&self, is_first: impl Fn(&str) -> bool) -> (Settings, Settings) {
        (
            self.filtered(&is_first),
            self.filtered(|name| !is_first(name)),
        )
    }

    /// A name has a value.
    pub fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// Another role, or another user of the session.
    pub fn has_role(&self) -> bool {
        self.iter().any(|(name, _)| is_role(name))
    }

    /// These, and of `defaults` what is not among them.
    pub fn with_defaults(&self, defaults: &Settings) -> Settings {
        if defaults.is_within(self) {
            return self.clone();
        }
        let missing = defaults.0.iter().filter(|(name, _)| !self.has(name));
        Self::from_pairs(self.0.iter().chain(missing).cloned())
    }

    /// A name's value.
    pub fn value(&self, name: &str) -> Option<&str> {
        let index = self
            .0
            .binary_search_by(|(other, _)| other.as_str().cmp(name))
            .ok()?;
        Some(&self.0[index].1)
    }

    /// The SQL that brings a backend from `applied` (`None`: not known, then `init_query` runs again) to these; `None` if
    /// it is there already.
    ///
    /// set_config takes a value as the startup packet does (SET would read `a,b` as one name), and NULL resets
    /// (src/backend/utils/misc/guc.c, `set_config_by_name`).
    pub(super) fn replay_sql(
        &self,
        applied: Option<&Settings>,
        init_query: Option<&str>,
    ) -> Option<String> {
        if applied == Some(self) {
            return None;
        }
        // What a setting falls back to is not the server's default where init_query set it.
        let applied = applied.filter(|applied| init_query.is_none() || applied.is_within(self));
        let Some(applied) = applied else {
            let mut sql = String::from(RESET_EVERYTHING);
            if let Some(init_query) = init_query {
                sql.push_str(init_query);
                // On a line of its own, or a comment at the end of the operator's text would swallow it.
                sql.push_str("\n;");
            }
            sql.push_str(&select(&self.sets(&Settings::empty())));
            return Some(sql);
        };
        let mut sql = select(&applied.resets(self));
        if !sql.is_empty() {
            sql.push(';');
        }
        sql.push_str(&select(&self.sets(applied)));
        Some(sql)
    }

    /// [`Self::is_within`], roles apart.
    pub fn is_within_but_roles(&self, other: &Settings) -> bool {
        self.iter()
            .all(|(name, _)| is_role(name) || other.has(name))
    }

    /// Every name here has a value there.
    pub fn is_within(&self, other: &Settings) -> bool {
        self.iter().all(|(name, _)| other.value(name).is_some())
    }

    /// The calls that take away what `wanted` does not have; the role first, and in any case: it may not be allowed to do
    /// the rest.
    fn resets(&self, wanted: &Settings) -> Vec<String> {
        let gone = |name: &str| is_role(name) || !wanted.has(name);
        let (roles, others): (Vec<_>, Vec<_>) = self
            .iter()
            .map(|(name, _)| name)
            .filter(|name| gone(name))
            .partition(|name| is_role(name));
        roles
            .into_iter()
            .chain(others)
            .map(|name| set_config(name, None))
            .collect()
    }

    /// The calls that give what `applied` does not have; the session's user and the role last: another may not be
    /// allowed to do the rest.
    fn sets(&self, applied: &Settings) -> Vec<String> {
        let (roles, others): (Vec<_>, Vec<_>) = self
            .iter()
            .filter(|(name, value)| is_role(name) || applied.value(name) != Some(value))
            .partition(|(name, _)| is_role(name));
        // "role" stands before "session_authorization", which resets it.
        others
            .into_iter()
            .chain(roles.into_iter().rev())
            .map(|(name, value)| set_config(name, Some(value)))
            .collect()
    }
}

/// RESET ALL leaves the role and the session's user alone (GUC_NO_RESET_ALL, src/backend/utils/misc/guc_tables.c).
const RESET_EVERYTHING: &str = "SET SESSION AUTHORIZATION DEFAULT;RESET ROLE;RESET ALL;";

fn is_role(name: &str) -> bool {
    matches!(name, "role" | "session_authorization")
}

fn select(calls: &[String]) -> String {
    match calls {
        [] => String::new(),
        calls => format!("SELECT {}", calls.join(",")),
    }
}

fn set_config(name: &str, value: Option<&str>) -> String {
    set_config_for(name, value, "false")
}

/// The call that gives a parameter a value, or without one its default, until the transaction ends.
pub fn set_config_locally(name: &str, value: Option<&str>) -> String {
    set_config_for(name, value, "true")
}

fn set_config_for(name: &str, value: Option<&str>, is_local: &str) -> String {
    let value = value.map_or_else(|| "NULL".into(), literal);
    format!(
        "pg_catalog.set_config({},{value},{is_local})",
        literal(name)
    )
}

/// An `E''` literal in printable ASCII: the same in every client_encoding, whatever standard_conforming_strings is. The
/// bytes are taken as the server's encoding, as those of a startup packet are.
pub fn literal(text: &str) -> String {
    let mut literal = String::from("E'");
    for byte in text.bytes() {
        match byte {
            b'\'' | b'\\' => {
                literal.push('\\');
                literal.push(byte.into());
            }
            b' '..=b'~' => literal.push(byte.into()),
            // Writing to a String does not fail.
            _ => drop(write!(literal, "\\x{byte:02x}")),
        }
    }
    literal.push('\'');
    literal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        Settings::from_pairs(pairs.iter().map(|(a, b)| ((*a).into(), (*b).into())))
    }

    #[test]
    fn only_the_difference_is_replayed() {
        let none = Settings::empty();
        let utc = settings(&[("TimeZone", "UTC")]);
        let both = settings(&[("timezone", "UTC"), ("a.b", "x")]);
        assert_eq!(utc.replay_sql(Some(&utc.clone()), None), None);
        assert_eq!(none.replay_sql(Some(&none), None), None);
        assert_eq!(
            utc.replay_sql(Some(&none), None).unwrap(),
            "SELECT pg_catalog.set_config(E'timezone',E'UTC',false)"
        );
        assert_eq!(
            utc.replay_sql(Some(&both), None).unwrap(),
            "SELECT pg_catalog.set_config(E'a.b',NULL,false);"
        );
        assert_eq!(none.replay_sql(None, None).unwrap(), RESET_EVERYTHING);
        assert_eq!(
            none.replay_sql(None, Some("SET a.b = 1 -- ours")).unwrap(),
            format!("{RESET_EVERYTHING}SET a.b = 1 -- ours\n;")
        );
    }

    #[test]
    fn a_role_goes_first_and_comes_last() {
        let call =
            |name: &str, value: &str| format!("pg_catalog.set_config(E'{name}',{value},false)");
        let limited = settings(&[("role", "limited"), ("work_mem", "1MB")]);
        let other = settings(&[
            ("role", "other"),
            ("session_authorization", "bob"),
            ("zz.y", "1"),
        ]);
        assert_eq!(
            other.replay_sql(Some(&limited), None).unwrap(),
            format!(
                "SELECT {},{};SELECT {},{},{}",
                call("role", "NULL"),
                call("work_mem", "NULL"),
                call("zz.y", "E'1'"),
                call("session_authorization", "E'bob'"),
                call("role", "E'other'"),
            )
        );
    }

    #[test]
    fn what_init_query_set_comes_back_when_a_client_of_its_own_mind_has_left() {
        let mine = settings(&[("work_mem", "1MB")]);
        let more = settings(&[("work_mem", "1MB"), ("a.b", "x")]);
        let init = Some("SET work_mem = '16MB'");
        let sql = Settings::empty().replay_sql(Some(&mine), init).unwrap();
        assert_eq!(sql, format!("{RESET_EVERYTHING}SET work_mem = '16MB'\n;"));
        let sql = more.replay_sql(Some(&mine), init).unwrap();
        assert_eq!(sql, "SELECT pg_catalog.set_config(E'a.b',E'x',false)");
    }

    #[test]
    fn only_a_value_the_server_takes_as_it_is_is_left_out() {
        let plain = settings(&[("application_name", "psql"), ("a.b", "x")]);
        let (others, name) = plain.without_plain("application_name");
        assert_eq!(
            (others, name),
            (settings(&[("a.b", "x")]), Some("psql".into()))
        );
        for value in ["\u{e4}", &"x".repeat(64), "a\tb"] {
            let odd = settings(&[("application_name", value)]);
            assert_eq!(odd.without_plain("application_name"), (odd.clone(), None));
        }
        assert_eq!(Settings::empty().without_plain("a").1, None);
    }

    #[test]
    fn the_last_of_a_name_counts_whatever_its_case() {
        assert_eq!(settings(&[("A", "1"), ("a", "2")]), settings(&[("a", "2")]));
    }

    #[test]
    fn a_value_cannot_leave_its_literal() {
        for (value, expected) in [
            (
                "x', false); drop table t; --",
                r"E'x\', false); drop table t; --'",
            ),
            (r"\' or 1=1", r"E'\\\' or 1=1'"),
            ("line\nbreak\0zero", r"E'line\x0abreak\x00zero'"),
            ("ä", r"E'\xc3\xa4'"),
        ] {
            assert_eq!(literal(value), expected);
        }
    }
}
