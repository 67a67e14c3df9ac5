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

/// The statements of one backend, the least recently used known.
pub struct PreparedHere {
    statements: LruCache<StatementId, ()>,
    most: usize,
}

impl PreparedHere {
    /// None yet, and never more than `most`.
    pub fn new(most: usize) -> Self {
        Self {
            // Bounded by `most`; a cache with a capacity of its own would drop what the server still has.
            statements: LruCache::unbounded(),
            most,
        }
    }

    /// Statements are shared at all.
    pub fn is_enabled(&self) -> bool {
        NonZeroUsize::new(self.most).is_some()
    }

    /// It is here: then it has just been used.
    pub fn touch(&mut self, id: StatementId) -> bool {
        self.statements.get(&id).is_some()
    }

    /// It is here; that is no use of it.
    pub fn has(&self, id: StatementId) -> bool {
        self.statements.contains(&id)
    }

    /// It is on its way here. Returns the one that must go for it.
    pub fn insert(&mut self, id: StatementId) -> Option<StatementId> {
        let full = self.statements.len() >= self.most && !self.statements.contains(&id);
        let evicted = full.then(|| self.statements.pop_lru()).flatten();
        self.statements.put(id, ());
        evicted.map(|(id, ())| id)
    }

    /// One that was to go is still here.
    pub fn restore(&mut self, id: StatementId) {
        self.statements.put(id, ());
    }

    /// It is not here after all.
    pub fn remove(&mut self, id: StatementId) {
        self.statements.pop(&id);
    }

    /// None is left.
    pub fn clear(&mut self) {
        self.statements.clear();
    }
}

/// Which statements a session has prepared here by SQL: name, and which of that name.
#[derive(Debug, Default)]
pub struct SqlPreparedHere(BTreeMap<String, u64>);

impl SqlPreparedHere {
    /// Which statement a name means here.
    pub fn id(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// A name is given a meaning.
    pub fn insert(&mut self, name: String, id: u64) {
        self.0.insert(name, id);
    }

    /// A name loses its meaning; which it was.
    pub fn remove(&mut self, name: &str) -> Option<u64> {
        self.0.remove(name)
    }

    /// Those of the names that `is_gone` lose their meaning.
    pub fn extract(&mut self, is_gone: impl Fn(&str, u64) -> bool) -> Vec<String> {
        let all = std::mem::take(&mut self.0);
        let (gone, kept) = all.into_iter().partition(|(name, id)| is_gone(name, *id));
        self.0 = kept;
        BTreeMap::into_keys(gone).collect()
    }

    /// None is left.
    pub fn clear(&mut self) {
        self.0.clear();
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
        assert!(here.touch(a));
        assert_eq!(here.insert(c), Some(b));
        assert!(here.touch(a) && here.touch(c) && !here.touch(b));
        assert_eq!(here.insert(c), None, "it is here already");
        here.clear();
        assert!(!here.touch(a));
    }
}
