//! Statements prepared by the protocol's Parse under a name, multiplexed: what a client calls `s1` is one [`Statement`]
//! shared by every client that prepares the same text, and each backend knows it by a name of ours.
//!
//! ```text
//!   client's name ──► Statement (text, parameter types; an id) ──► name on the backend, prepared there on demand
//! ```
//! A client sees PostgreSQL's own behaviour: its names are its own, a name in use can't be prepared again, an unknown
//! one is an error. What has been sent but not yet answered is a [`Note`]; if the server never carries it out (an error
//! earlier in the batch), the note is undone. Pure: no I/O.

mod messages;

pub use messages::{
    Named, close_message, close_named, describe_message, named, parse_message, parse_named,
    renamed_front,
};

use super::requests::Unnamed;
use super::shape::Shape;
use super::statement::{Effects, StatementReader, is_harmless};
use crate::backend::prepared::StatementId;
use crate::backend::settings::Settings;
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// The longest Parse, header included, that is multiplexed; a longer one stays on its backend, and so does its session.
pub const PARSE_LEN_MAX: usize = 32 * 1024;

/// What one client's statements may hold, names and texts together; beyond it the next ones pin.
const CLIENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What an entry costs beside its texts, about.
const ENTRY_BYTES: usize = 256;

/// The body of a Parse of an empty text, which no server refuses.
pub const EMPTY: &[u8] = b"\0\0\0";

/// What a client called a statement.
pub type Name = Box<[u8]>;

/// One text with its parameter types. Its memory is free when no client has it any more.
#[derive(Debug)]
pub struct Statement {
    /// What backends know it by.
    pub id: StatementId,
    /// The body of its Parse after the name: text, zero byte, parameter types.
    pub body: Bytes,
    /// What its text leaves behind when it runs.
    pub effects: Effects,
    /// What decided its meaning when it was prepared.
    pub scope: Scope,
    /// What the server made of it, once it has said so.
    shape: OnceLock<Shape>,
    hash: OnceLock<u64>,
    store: Weak<StatementStore>,
}

/// The settings that decide what a text means: the same text is another statement under others.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Scope {
    /// Where its names are looked up, and with whose rights: search_path, role, session_authorization. The server follows
    /// changes of these (src/backend/utils/cache/plancache.c, `RevalidateCachedQuery`).
    pub place: Settings,
    /// How its literals are read: DateStyle, TimeZone, … The server reads them once, when the text is prepared.
    pub reading: Settings,
}

impl Scope {
    /// Of a session with these settings.
    pub fn of(settings: &Settings) -> Self {
        let (place, reading) = settings
            .filtered(|name| !is_harmless(name))
            .split(|name| matches!(name, "search_path" | "role" | "session_authorization"));
        Self { place, reading }
    }

    /// The parameters' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let all = self.place.iter().chain(self.reading.iter());
        all.map(|(name, _)| name)
    }
}

/// All statements of the proxy.
#[derive(Debug)]
pub struct StatementStore {
    by_hash: Mutex<HashMap<u64, Vec<Known>>>,
    hasher: RandomState,
    next: AtomicU64,
}

/// Not by the `Weak` alone: a strong reference made under the lock might become the last, whose drop takes the lock.
#[derive(Debug)]
struct Known {
    id: StatementId,
    statement: Weak<Statement>,
}

impl Default for StatementStore {
    fn default() -> Self {
        Self {
            by_hash: Mutex::default(),
            hasher: RandomState::new(),
            // Another proxy before the same server, or before this one, has other names.
            next: AtomicU64::new(u64::from(rand::random::<u32>()) << 24 | 1),
        }
    }
}

impl StatementStore {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Vec<Known>>> {
        self.by_hash.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A statement that a client is preparing; it is nobody else's before its shape is known.
    pub fn fresh(self: &Arc<Self>, body: &[u8], scope: Scope) -> Arc<Statement> {
        Arc::new(Statement {
            id: StatementId(self.next_id()),
            body: Bytes::copy_from_slice(body),
            effects: effects_of(body),
            scope,
            shape: OnceLock::new(),
            hash: OnceLock::new(),
            store: Arc::downgrade(self),
        })
    }

    /// A statement's shape is known: the one that is the same in everything, which may be this one.
    pub fn share(self: &Arc<Self>, statement: &Arc<Statement>, shape: Shape) -> Arc<Statement> {
        let hash = (self.hasher).hash_one((&statement.body, &statement.scope, &shape));
        if statement.shape.set(shape).is_err() {
            return statement.clone();
        }
        let candidates: Vec<Arc<Statement>>; // dropped after the lock is free
        let mut all = self.lock();
        let same_hash = all.entry(hash).or_default();
        candidates = same_hash
            .iter()
            .filter_map(|known| known.statement.upgrade())
            .collect();
        if let Some(known) = candidates.iter().find(|known| known.is_same(statement)) {
            return known.clone();
        }
        // Set by whom has set its shape alone.
        _ = statement.hash.set(hash);
        same_hash.push(Known {
            id: statement.id,
            statement: Arc::downgrade(statement),
        });
        statement.clone()
    }

    /// A number that no other statement has.
    pub fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn forget(&self, hash: u64, id: StatementId) {
        let mut all = self.lock();
        if let Some(same_hash) = all.get_mut(&hash) {
            same_hash.retain(|known| known.id != id);
            if same_hash.is_empty() {
                all.remove(&hash);
            }
        }
    }

    /// Statements some client has.
    pub fn len(&self) -> usize {
        self.lock().values().map(Vec::len).sum()
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Statement {
    /// What the server made of it.
    pub fn shape(&self) -> Option<&Shape> {
        self.shape.get()
    }

    fn is_same(&self, other: &Statement) -> bool {
        self.body == other.body && self.scope == other.scope && self.shape() == other.shape()
    }
}

impl Drop for Statement {
    fn drop(&mut self) {
        if let (Some(store), Some(hash)) = (self.store.upgrade(), self.hash.get()) {
            store.forget(*hash, self.id);
        }
    }
}

/// `body` begins with the text; a zero byte ends it.
pub fn effects_of(body: &[u8]) -> Effects {
    let text = body.split(|&byte| byte == 0).next().unwrap_or_default();
    let mut reader = StatementReader::default();
    reader.feed(text);
    reader.finish().read_set_config(text)
}

#[derive(Debug)]
struct Meaning {
    statement: Arc<Statement>,
    /// Which of the client's names it was.
    number: u64,
}

/// One client's names.
#[derive(Debug, Default)]
pub struct Names {
    by_name: HashMap<Name, Meaning>,
    bytes: usize,
    /// How many names there have been.
    given: u64,
}

impl Names {
    /// What a name means.
    pub fn find(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.by_name.get(name).map(|it| &it.statement)
    }

    /// No names.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Another statement would hold too much.
    pub fn is_full(&self) -> bool {
        self.bytes >= CLIENT_BYTES_MAX
    }

    /// A name gets its meaning.
    pub fn insert(&mut self, name: Name, statement: Arc<Statement>) {
        let number = match self.remove(&name) {
            Some(before) => before.number,
            None => {
                self.given += 1;
                self.given
            }
        };
        self.bytes += name.len() + statement.body.len() + ENTRY_BYTES;
        self.by_name.insert(name, Meaning { statement, number });
    }

    /// All names, in the order given.
    pub fn in_order(&self) -> Vec<(Name, Arc<Statement>)> {
        let mut all: Vec<_> = self.by_name.iter().collect();
        all.sort_unstable_by_key(|(_, it)| it.number);
        all.into_iter()
            .map(|(name, it)| (name.clone(), it.statement.clone()))
            .collect()
    }

    /// A name loses its meaning.
    pub fn take(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        self.remove(name).map(|it| it.statement)
    }

    fn remove(&mut self, name: &[u8]) -> Option<Meaning> {
        let meaning = self.by_name.remove(name)?;
        self.bytes -= name.len() + meaning.statement.body.len() + ENTRY_BYTES;
        Some(meaning)
    }

    /// DISCARD ALL, DEALLOCATE ALL.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// A statement in use, as an error may speak of it.
#[derive(Clone, Debug)]
pub struct Used {
    /// The client's name for it.
    pub name: Name,
    /// What it is.
    pub statement: Arc<Statement>,
    /// The backend's name for it.
    pub known_as: StatementId,
    /// It can't be had any more as the client knows it.
    pub is_stale: bool,
}

impl Used {
    /// One that is what its client knows.
    pub fn plain(name: Name, statement: Arc<Statement>, known_as: StatementId) -> Self {
        Self {
            name,
            statement,
            known_as,
            is_stale: false,
        }
    }
}

/// What a message in flight has changed in the proxy's memory, and what its error means.
#[derive(Debug, Default)]
pub struct Note {
    /// The backend is getting this statement.
    pub prepared: Option<StatementId>,
    /// The backend is losing this statement, of this name there.
    pub evicted: Option<(StatementId, StatementId)>,
    /// The client's name that is getting its meaning.
    pub named: Option<Name>,
    /// The client's name that is losing its meaning.
    pub unnamed: Option<(Name, Arc<Statement>)>,
    /// The statement that is being used.
    pub used: Option<Used>,
    /// The statement whose shape the answer tells, and the name that it was prepared for, if it was by its client.
    pub described: Option<(Arc<Statement>, Option<Name>)>,
    /// A name on the backend that nobody uses is being closed.
    pub closed: Option<StatementId>,
    /// The client's unnamed statement before this message took its place.
    pub replaced_unnamed: Option<Unnamed>,
    /// The backend had that one.
    pub unnamed_was_here: bool,
    /// The name that SQL's PREPARE gets on the backend.
    pub sql_prepared: Option<String>,
    /// The name that SQL's DEALLOCATE takes from the backend, and what it was.
    pub sql_gone: Option<(String, u64)>,
    /// The name of its own that the session sees the statement by.
    pub shown: Option<String>,
    /// The same, being closed.
    pub hidden: Option<String>,
    /// The message itself failed; else one before it did.
    pub failed: bool,
}

/// The body of a server's error that speaks of a statement, with the client's name for it in the place of ours.
pub fn renamed_error(body: &[u8], ours: StatementId, theirs: &[u8]) -> BytesMut {
    let (ours, mut renamed) = (format!("\"{ours}\""), BytesMut::with_capacity(body.len()));
    let mut rest = body;
    while let Some(at) = find(rest, ours.as_bytes()) {
        renamed.put_slice(&rest[..at]);
        renamed.put_u8(b'"');
        renamed.put_slice(theirs);
        renamed.put_u8(b'"');
        rest = &rest[at + ours.len()..];
    }
    renamed.put_slice(rest);
    renamed
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len())
        .position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Scope {
        Scope::of(&Settings::empty())
    }

    fn prepare(store: &Arc<StatementStore>, body: &[u8], scope: Scope, oid: u32) -> Arc<Statement> {
        let shape = Shape {
            parameters: vec![oid],
            columns: None,
        };
        store.share(&store.fresh(body, scope), shape)
    }

    #[test]
    fn statements_that_are_the_same_are_one_until_nobody_has_them() {
        let store = Arc::new(StatementStore::default());
        let path = Scope::of(&Settings::from_pairs([("search_path".into(), "x".into())]));
        let one = prepare(&store, b"select 1\0\0\0", plain(), 23);
        let again = prepare(&store, b"select 1\0\0\0", plain(), 23);
        assert!(Arc::ptr_eq(&one, &again));
        let others = [
            prepare(&store, b"select 2\0\0\0", plain(), 23),
            prepare(&store, b"select 1\0\0\0", path, 23),
            prepare(&store, b"select 1\0\0\0", plain(), 25),
        ];
        assert!(others.iter().all(|other| other.id != one.id));
        assert_eq!(store.len(), 4);
        drop((one, again));
        assert_eq!(store.len(), 3);
        drop(others);
        assert!(store.is_empty());
    }

    #[test]
    fn names_know_what_they_hold() {
        let store = Arc::new(StatementStore::default());
        let mut names = Names::default();
        names.insert((*b"a").into(), store.fresh(b"select 1\0\0\0", plain()));
        names.insert((*b"a").into(), store.fresh(b"select 22\0\0\0", plain()));
        assert_eq!(names.bytes, 1 + b"select 22\0\0\0".len() + ENTRY_BYTES);
        assert!(names.remove(b"b").is_none());
        assert!(names.remove(b"a").is_some());
        assert_eq!(names.bytes, 0);
        assert!(store.is_empty());
    }

    #[test]
    fn errors_speak_of_the_clients_name() {
        let renamed = renamed_error(
            b"SERROR\0M\"pgsluice_7\" and \"pgsluice_77\"\0\0",
            StatementId(7),
            b"s1",
        );
        assert_eq!(renamed, &b"SERROR\0M\"s1\" and \"pgsluice_77\"\0\0"[..]);
    }
}
