//! Statements prepared by the protocol's Parse under a name, multiplexed: what a client calls `s1` is one [`Statement`]
//! shared by every client that prepares the same text, and each backend knows it by a name of ours.
//!
//! ```text
//!   client's name ──► Statement (text, parameter types; an id) ──► name on the backend, prepared there on demand
//! ```
//! A client sees PostgreSQL's own behaviour: its names are its own, a name in use can't be prepared again, an unknown
//! one is an error. What has been sent but not yet answered is a [`Note`]; if the server never carries it out (an error
//! earlier in the batch), the note is undone. Pure: no I/O.

use super::requests::{NAMES_LEN_MAX, Unnamed};
use super::statement::{Effects, StatementReader, is_harmless};
use crate::backend::prepared::StatementId;
use crate::backend::settings::Settings;
use crate::wire::frame::{HEADER_LEN, Header};
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The longest Parse, header included, that is multiplexed; a longer one stays on its backend, and so does its session.
pub const PARSE_LEN_MAX: usize = 32 * 1024;

/// What one client's statements may hold, names and texts together; beyond it the next ones pin.
const CLIENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What an entry costs beside its texts, about.
const ENTRY_BYTES: usize = 256;

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
    hash: u64,
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

    /// The statement of this text under this scope.
    pub fn intern(self: &Arc<Self>, body: &[u8], scope: &Scope) -> Arc<Statement> {
        let hash = self.hasher.hash_one((body, scope));
        let candidates: Vec<Arc<Statement>>; // dropped after the lock is free
        let mut all = self.lock();
        let same_hash = all.entry(hash).or_default();
        candidates = same_hash
            .iter()
            .filter_map(|known| known.statement.upgrade())
            .collect();
        let same = |known: &&Arc<Statement>| known.body == body && known.scope == *scope;
        if let Some(known) = candidates.iter().find(same) {
            return known.clone();
        }
        let made = self.make(body, scope, hash);
        same_hash.push(Known {
            id: made.id,
            statement: Arc::downgrade(&made),
        });
        made
    }

    /// A number that no other statement has.
    pub fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn make(self: &Arc<Self>, body: &[u8], scope: &Scope, hash: u64) -> Arc<Statement> {
        Arc::new(Statement {
            id: StatementId(self.next_id()),
            body: Bytes::copy_from_slice(body),
            effects: effects_of(body),
            scope: scope.clone(),
            hash,
            store: Arc::downgrade(self),
        })
    }

    /// Whoever prepares the text from now on gets another statement: the server refuses this one's plan for good
    /// ("cached plan must not change result type").
    pub fn retire(&self, statement: &Statement) {
        self.forget(statement.hash, statement.id);
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

impl Drop for Statement {
    fn drop(&mut self) {
        if let Some(store) = self.store.upgrade() {
            store.forget(self.hash, self.id);
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

/// One client's names.
#[derive(Debug, Default)]
pub struct Names {
    by_name: HashMap<Name, Arc<Statement>>,
    bytes: usize,
}

impl Names {
    /// What a name means.
    pub fn find(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.by_name.get(name)
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
        self.bytes += name.len() + statement.body.len() + ENTRY_BYTES;
        if let Some(before) = self.by_name.insert(name.clone(), statement) {
            self.bytes -= name.len() + before.body.len() + ENTRY_BYTES;
        }
    }

    /// A name loses its meaning.
    pub fn remove(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        let statement = self.by_name.remove(name)?;
        self.bytes -= name.len() + statement.body.len() + ENTRY_BYTES;
        Some(statement)
    }

    /// DISCARD ALL, DEALLOCATE ALL.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// What a message in flight has changed in the proxy's memory, and what its error means.
#[derive(Debug, Default)]
pub struct Note {
    /// The backend is getting this statement.
    pub prepared: Option<StatementId>,
    /// The backend is losing this statement.
    pub evicted: Option<StatementId>,
    /// The client's name that is getting its meaning.
    pub named: Option<Name>,
    /// The client's name that is losing its meaning.
    pub unnamed: Option<(Name, Arc<Statement>)>,
    /// The client's name for the statement that is being used.
    pub used: Option<(Name, Arc<Statement>)>,
    /// The client's unnamed statement before this message took its place.
    pub replaced_unnamed: Option<Unnamed>,
    /// The name that SQL's PREPARE gets on the backend.
    pub sql_prepared: Option<String>,
    /// The name that SQL's DEALLOCATE takes from the backend, and what it was.
    pub sql_gone: Option<(String, u64)>,
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

/// A message that names a statement, as far as it has been read.
#[derive(Debug, PartialEq, Eq)]
pub enum Named<'a> {
    /// Names no statement, or the unnamed one.
    No,
    /// Its name has not all come.
    Incomplete,
    /// Its name has no end within [`NAMES_LEN_MAX`].
    Endless,
    /// Parse: it must come whole.
    Parse {
        /// The statement's name.
        name: &'a [u8],
        /// What follows it.
        body: &'a [u8],
    },
    /// Bind, Describe or Close.
    Use {
        /// What stands before the name, header not included.
        before: &'a [u8],
        /// The statement's name.
        name: &'a [u8],
    },
}

/// Looks for a statement's name in the frame at the front of `bytes`.
pub fn named<'a>(header: Header, bytes: &'a [u8]) -> Named<'a> {
    let body = bytes.get(HEADER_LEN..).unwrap_or_default();
    let body = &body[..body.len().min(header.body_len)];
    let all_there = body.len() == header.body_len;
    let before_len = match (header.tag, body.first()) {
        (b'P', Some(first)) if *first != 0 => 0,
        (b'D' | b'C', Some(b'S')) => 1,
        (b'B', _) => match body.iter().position(|&byte| byte == 0) {
            Some(end) => end + 1,
            None => return Named::No, // the server's to refuse
        },
        _ => return Named::No,
    };
    let (before, rest) = body.split_at(before_len);
    let Some(end) = rest.iter().position(|&byte| byte == 0) else {
        return match all_there {
            true => Named::No,
            false if rest.len() > NAMES_LEN_MAX => Named::Endless,
            false => Named::Incomplete,
        };
    };
    let name = &rest[..end];
    match header.tag {
        _ if name.is_empty() => Named::No,
        b'P' if !all_there => Named::Incomplete,
        b'P' => Named::Parse {
            name,
            body: &rest[end + 1..],
        },
        _ => Named::Use { before, name },
    }
}

/// The Parse that prepares a statement on a backend.
pub fn parse_message(id: StatementId, body: &[u8]) -> BytesMut {
    let name = id.name();
    let len = 4 + name.len() + 1 + body.len();
    let mut message = BytesMut::with_capacity(1 + len);
    message.put_u8(b'P');
    message.put_u32(len as u32); // at most PARSE_LEN_MAX and a name
    message.put_slice(name.as_bytes());
    message.put_u8(0);
    message.put_slice(body);
    message
}

/// The Close that takes a statement off a backend.
pub fn close_message(id: StatementId) -> BytesMut {
    let name = id.name();
    let mut message = BytesMut::with_capacity(HEADER_LEN + 2 + name.len());
    message.put_u8(b'C');
    message.put_u32(4 + 2 + name.len() as u32);
    message.put_u8(b'S');
    message.put_slice(name.as_bytes());
    message.put_u8(0);
    message
}

/// The front of a Bind or Describe, up to the statement's name, with the name a backend knows it by.
pub fn renamed_front(header: Header, before: &[u8], name: &[u8], id: StatementId) -> BytesMut {
    let ours = id.name();
    let body_len = header.body_len - name.len() + ours.len();
    let mut message = BytesMut::with_capacity(HEADER_LEN + before.len() + ours.len() + 1);
    message.put_u8(header.tag);
    message.put_u32(body_len as u32 + 4); // its length was a u32, and a name of ours is short
    message.put_slice(before);
    message.put_slice(ours.as_bytes());
    message.put_u8(0);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Scope {
        Scope::of(&Settings::empty())
    }

    fn frame(tag: u8, body: &[u8]) -> (Header, Vec<u8>) {
        let mut frame = vec![tag];
        frame.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        frame.extend_from_slice(body);
        let header = Header::parse(&frame).unwrap().unwrap();
        (header, frame)
    }

    #[test]
    fn statements_of_the_same_text_are_one_until_nobody_has_them() {
        let store = Arc::new(StatementStore::default());
        let path = Scope::of(&Settings::from_pairs([("search_path".into(), "x".into())]));
        let one = store.intern(b"select 1\0\0\0", &plain());
        let again = store.intern(b"select 1\0\0\0", &plain());
        assert!(Arc::ptr_eq(&one, &again));
        let scoped = store.intern(b"select 1\0\0\0", &path);
        assert_ne!(one.id, scoped.id);
        assert_eq!(store.len(), 2);
        drop((one, again));
        assert_eq!(store.len(), 1);
        store.retire(&scoped);
        let fresh = store.intern(b"select 1\0\0\0", &path);
        assert_ne!(fresh.id, scoped.id);
        drop(scoped);
        assert_eq!(store.len(), 1, "who is retired takes nobody along");
        drop(fresh);
        assert!(store.is_empty());
    }

    #[test]
    fn names_know_what_they_hold() {
        let store = Arc::new(StatementStore::default());
        let mut names = Names::default();
        names.insert((*b"a").into(), store.intern(b"select 1\0\0\0", &plain()));
        names.insert((*b"a").into(), store.intern(b"select 22\0\0\0", &plain()));
        assert_eq!(names.bytes, 1 + b"select 22\0\0\0".len() + ENTRY_BYTES);
        assert!(names.remove(b"b").is_none());
        assert!(names.remove(b"a").is_some());
        assert_eq!(names.bytes, 0);
        assert!(store.is_empty());
    }

    #[test]
    fn names_are_found_in_every_message_that_has_one() {
        let (header, parse) = frame(b'P', b"s1\0select 1\0\0\0");
        assert_eq!(
            named(header, &parse),
            Named::Parse {
                name: b"s1",
                body: b"select 1\0\0\0"
            }
        );
        assert_eq!(named(header, &parse[..12]), Named::Incomplete);
        let endless = [b"\0", &[b'x'; 20_000][..]].concat();
        let (header, endless) = frame(b'B', &endless);
        assert_eq!(named(header, &endless[..8000]), Named::Incomplete);
        assert_eq!(named(header, &endless[..9000]), Named::Endless);
        let (header, bind) = frame(b'B', b"portal\0s1\0\0\0\0\0\0\0");
        let used = Named::Use {
            before: b"portal\0",
            name: b"s1",
        };
        assert_eq!(named(header, &bind), used);
        assert_eq!(named(header, &bind[..15]), used);
        assert_eq!(named(header, &bind[..14]), Named::Incomplete);
        for (tag, body) in [
            (b'P', &b"\0select 1\0\0\0"[..]),
            (b'B', b"\0\0\0\0\0\0\0\0"),
            (b'D', b"Pportal\0"),
            (b'C', b"S\0"),
            (b'C', b"Sno end"),
            (b'S', b""),
            (b'Q', b"s1\0"),
        ] {
            let (header, bytes) = frame(tag, body);
            assert_eq!(named(header, &bytes), Named::No, "{body:?}");
        }
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

    #[test]
    fn messages_for_backends_have_true_lengths() {
        let store = Arc::new(StatementStore::default());
        let statement = store.intern(b"select 1\0\0\0", &plain());
        let parse = parse_message(statement.id, &statement.body);
        assert_eq!(
            Header::parse(&parse).unwrap().unwrap().frame_len(),
            parse.len()
        );
        let close = close_message(statement.id);
        assert_eq!(
            Header::parse(&close).unwrap().unwrap().frame_len(),
            close.len()
        );
        let (header, bind) = frame(b'B', b"p\0name\0rest");
        let mut renamed = renamed_front(header, b"p\0", b"name", statement.id);
        renamed.put_slice(&bind[HEADER_LEN + 7..]);
        assert_eq!(
            Header::parse(&renamed).unwrap().unwrap().frame_len(),
            renamed.len()
        );
        assert!(renamed.ends_with(b"\0rest"));
    }
}
