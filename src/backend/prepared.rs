//! Which of the proxy's shared statements a backend has, and which of them goes when there are too many.

use lru::LruCache;
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;

/// A statement of the proxy's, whatever clients call it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StatementId(pub u64);

impl StatementId {
    /// The name backends know it by. Clients' own names never reach a backend, but for statements that pin.
    pub fn name(self) -> String {
        self.to_string()
    }
}

impl fmt::Display for StatementId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pgsluice_{}", self.0)
    }
}

/// The statements of one backend, the least recently used known. Each has a name there, by number: at first its own, or
/// that of another which turned out to be the same.
pub struct PreparedHere {
    names: LruCache<StatementId, StatementId>,
    most: usize,
    /// Names that nobody uses, not yet closed.
    unused: Vec<StatementId>,
}

impl PreparedHere {
    /// None yet, and never more than `most`.
    pub fn new(most: usize) -> Self {
        Self {
            // Bounded by `most`; a cache with a capacity of its own would drop what the server still has.
            names: LruCache::unbounded(),
            most,
            unused: Vec::new(),
        }
    }

    /// Statements are shared at all.
    pub fn is_enabled(&self) -> bool {
        NonZeroUsize::new(self.most).is_some()
    }

    /// Its name here: then it has just been used.
    pub fn touch(&mut self, id: StatementId) -> Option<StatementId> {
        self.names.get(&id).copied()
    }

    /// It is here; that is no use of it.
    pub fn has(&self, id: StatementId) -> bool {
        self.names.contains(&id)
    }

    /// Some statement has this name here.
    pub fn has_name(&self, name: StatementId) -> bool {
        self.names.iter().any(|(_, other)| *other == name)
    }

    /// It is on its way here, under its own name. Returns the one that must go for it, and its name.
    pub fn insert(&mut self, id: StatementId) -> Option<(StatementId, StatementId)> {
        let full = self.names.len() >= self.most && !self.names.contains(&id);
        let evicted = full.then(|| self.names.pop_lru()).flatten();
        self.names.put(id, id);
        evicted
    }

    /// [`Self::insert`] of one that nobody will use: it goes first.
    pub fn insert_unused(&mut self, id: StatementId) -> Option<(StatementId, StatementId)> {
        let evicted = self.insert(id);
        self.names.demote(&id);
        evicted
    }

    /// One that was to go is still here.
    pub fn restore(&mut self, id: StatementId, name: StatementId) {
        self.names.put(id, name);
    }

    /// It is not here after all; its name.
    pub fn remove(&mut self, id: StatementId) -> Option<StatementId> {
        self.names.pop(&id)
    }

    /// `fresh` is the same as `known`: what is here of it serves for that, or for nothing.
    pub fn adopt(&mut self, known: StatementId, fresh: StatementId) {
        let Some(name) = self.names.pop(&fresh) else {
            return;
        };
        match self.names.contains(&known) {
            true => self.unused.push(name),
            false => _ = self.names.put(known, name),
        }
    }

    /// All of them, and their names; none is here any more.
    pub fn take_all(&mut self) -> Vec<(StatementId, StatementId)> {
        std::iter::from_fn(|| self.names.pop_lru()).collect()
    }

    /// A name that nobody uses.
    pub fn add_unused(&mut self, name: StatementId) {
        self.unused.push(name);
    }

    /// The names that nobody uses, to be closed now.
    pub fn take_unused(&mut self) -> Vec<StatementId> {
        std::mem::take(&mut self.unused)
    }

    /// None is left.
    pub fn clear(&mut self) {
        self.names.clear();
        self.unused.clear();
    }
}

/// Which statements a session has prepared here by SQL: name, and which of that name.
#[derive(Debug, Default)]
pub struct SqlPreparedHere {
    names: BTreeMap<String, u64>,
    /// It may be that one of them could not be prepared.
    pub unsure: bool,
}

impl SqlPreparedHere {
    /// Which statement a name means here.
    pub fn id(&self, name: &str) -> Option<u64> {
        self.names.get(name).copied()
    }

    /// A name is given a meaning.
    pub fn insert(&mut self, name: String, id: u64) {
        self.names.insert(name, id);
    }

    /// A name loses its meaning; which it was.
    pub fn remove(&mut self, name: &str) -> Option<u64> {
        self.names.remove(name)
    }

    /// Those of the names that `is_gone` lose their meaning.
    pub fn extract(&mut self, is_gone: impl Fn(&str, u64) -> bool) -> Vec<String> {
        let all = std::mem::take(&mut self.names);
        let (gone, kept) = all.into_iter().partition(|(name, id)| is_gone(name, *id));
        self.names = kept;
        BTreeMap::into_keys(gone).collect()
    }

    /// None is left.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let [a, b, c] = [1, 2, 3].map(StatementId);
        let mut here = PreparedHere::new(2);
        assert_eq!((here.insert(a), here.insert(b)), (None, None));
        assert_eq!(here.touch(a), Some(a));
        assert_eq!(here.insert(c), Some((b, b)));
        assert!(here.has(a) && here.has(c) && !here.has(b));
        assert_eq!(here.insert(c), None, "it is here already");
        here.clear();
        assert!(!here.has(a));
    }

    #[test]
    fn what_is_the_same_keeps_one_name() {
        let [known, fresh, again] = [1, 2, 3].map(StatementId);
        let mut here = PreparedHere::new(9);
        here.insert(fresh);
        here.adopt(known, fresh);
        assert_eq!(here.touch(known), Some(fresh));
        here.insert(again);
        here.adopt(known, again);
        assert_eq!(here.touch(known), Some(fresh));
        assert_eq!(here.take_unused(), [again]);
        assert_eq!(here.remove(known), Some(fresh));
        here.adopt(known, fresh);
        assert_eq!((here.touch(known), here.take_unused()), (None, vec![]));
    }
}
