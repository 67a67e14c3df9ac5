//! Which statements make sessions keep their backends: what `/pins` shows and the log tells once.
//!
//! Bounded: beyond [`ENTRIES_MAX`] the statement seen least recently goes, those that pin now last. Written when a pin
//! begins and when it ends, never on the way of a statement that pins nothing.

use super::digest::Digest;
use super::pin::{PinReason, PinReasons};
use crate::ids::PoolKey;
use lru::LruCache;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Statements remembered, of all pools and reasons.
const ENTRIES_MAX: usize = 200;

/// Statements that are new go to the log at level info, so many a minute: names made up for every use (a temporary table's)
/// make every statement a new one.
const NEWS_A_MINUTE: u32 = 30;

const MINUTE: Duration = Duration::from_secs(60);

/// What sessions are told of pins, and tell.
#[derive(Clone, Default)]
pub struct Pinning {
    /// `session_pinning_filters`: reasons that must not pin.
    pub filters: PinReasons,
    /// Where pins are written down.
    pub book: Arc<PinBook>,
}

/// All pins, by pool, reason and statement.
#[derive(Debug)]
pub struct PinBook(Mutex<Entries>);

/// One line of the book.
#[derive(Clone, PartialEq, Debug)]
pub struct PinRecord {
    /// Where its sessions have their backends from.
    pub pool: PoolKey,
    /// Why they keep them.
    pub reason: PinReason,
    /// The statement that gave the reason; `None` if nobody's text did.
    pub digest: Option<Digest>,
    /// Backends kept for it now.
    pub now: u32,
    /// Times it has pinned.
    pub pins: u64,
    /// Times `session_pinning_filters` kept it from that, and what it had left was thrown away.
    pub filtered: u64,
    /// How long backends were kept for it, those kept now included.
    pub held: Duration,
    /// When it was first seen.
    pub first_seen: SystemTime,
    /// When it last pinned, or ended to.
    pub last_seen: SystemTime,
}

/// A pin in the book, until it is dropped.
#[derive(Debug)]
pub struct BookedPin {
    book: Arc<PinBook>,
    key: Key,
    id: u64,
    /// When it began.
    pub since: Instant,
    /// Nobody has been told of the like before.
    pub is_news: bool,
}

type Key = (PoolKey, PinReason, Option<Digest>);

#[derive(Debug)]
struct Entries {
    by_key: LruCache<Key, Entry>,
    next_id: u64,
    /// What is kept now is reckoned from here.
    opened: Instant,
    minute: Instant,
    news: u32,
}

#[derive(Debug)]
struct Entry {
    /// A key that is forgotten and comes again is another entry.
    id: u64,
    now: u32,
    pins: u64,
    filtered: u64,
    ended: Duration,
    /// When those kept now began, added up.
    begun: Duration,
    first_seen: SystemTime,
    last_seen: SystemTime,
}

impl Default for PinBook {
    fn default() -> Self {
        let opened = Instant::now();
        Self(Mutex::new(Entries {
            // Bounded by `make_room`, which looks at what pins now.
            by_key: LruCache::unbounded(),
            next_id: 0,
            opened,
            minute: opened,
            news: 0,
        }))
    }
}

impl PinBook {
    /// A backend is kept for this, until the answer is dropped.
    pub fn pinned(
        self: &Arc<Self>,
        pool: &PoolKey,
        reason: PinReason,
        digest: Option<Digest>,
    ) -> BookedPin {
        let key = (pool.clone(), reason, digest);
        let mut entries = self.lock();
        let since = Instant::now();
        let begun = since - entries.opened;
        let (entry, is_news) = entries.seen(&key);
        entry.now += 1;
        entry.pins += 1;
        entry.begun += begun;
        BookedPin {
            book: self.clone(),
            id: entry.id,
            key,
            since,
            is_news,
        }
    }

    /// A backend would have been kept for this. True if nobody has been told of the like before.
    pub fn filtered(&self, pool: &PoolKey, reason: PinReason, digest: Option<Digest>) -> bool {
        let key = (pool.clone(), reason, digest);
        let mut entries = self.lock();
        let (entry, is_news) = entries.seen(&key);
        entry.filtered += 1;
        is_news
    }

    /// All that is in it: what keeps most backends now first, then what has kept them longest.
    pub fn records(&self) -> Vec<PinRecord> {
        let entries = self.lock();
        let since_opened = entries.opened.elapsed();
        let mut records: Vec<_> = entries
            .by_key
            .iter()
            .map(|((pool, reason, digest), entry)| PinRecord {
                pool: pool.clone(),
                reason: *reason,
                digest: digest.clone(),
                now: entry.now,
                pins: entry.pins,
                filtered: entry.filtered,
                held: entry.ended + (since_opened * entry.now).saturating_sub(entry.begun),
                first_seen: entry.first_seen,
                last_seen: entry.last_seen,
            })
            .collect();
        drop(entries);
        records.sort_by_key(|record| std::cmp::Reverse((record.now, record.held)));
        records
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    /// The key's entry, and whether it is worth a line in the log.
    fn seen(&mut self, key: &Key) -> (&mut Entry, bool) {
        let is_new = !self.by_key.contains(key);
        if is_new {
            self.make_room();
            self.next_id += 1;
        }
        let is_news = is_new && self.may_be_told();
        let (id, seen) = (self.next_id, SystemTime::now());
        let entry = self.by_key.get_or_insert_mut_ref(key, || Entry {
            id,
            now: 0,
            pins: 0,
            filtered: 0,
            ended: Duration::ZERO,
            begun: Duration::ZERO,
            first_seen: seen,
            last_seen: seen,
        });
        entry.last_seen = seen;
        (entry, is_news)
    }

    fn make_room(&mut self) {
        if self.by_key.len() < ENTRIES_MAX {
            return;
        }
        let oldest_first = || self.by_key.iter().rev();
        let ended = oldest_first().find(|(_, entry)| entry.now == 0);
        let oldest = ended.or_else(|| oldest_first().next());
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.by_key.pop(&key);
        }
    }

    fn may_be_told(&mut self) -> bool {
        if self.minute.elapsed() >= MINUTE {
            self.minute = Instant::now();
            self.news = 0;
        }
        self.news += 1;
        self.news <= NEWS_A_MINUTE
    }
}

impl Drop for BookedPin {
    fn drop(&mut self) {
        let mut entries = self.book.lock();
        let begun = self.since - entries.opened;
        let entry = entries.by_key.get_mut(&self.key);
        // It may have been forgotten meanwhile.
        if let Some(entry) = entry.filter(|entry| entry.id == self.id) {
            entry.now -= 1;
            entry.begun = entry.begun.saturating_sub(begun);
            entry.ended += self.since.elapsed();
            entry.last_seen = SystemTime::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Database, Role, TargetName};

    fn pool() -> PoolKey {
        PoolKey {
            target: TargetName::new("t"),
            database: Database::new("d"),
            role: Role::new("r"),
        }
    }

    fn digest(number: usize) -> Option<Digest> {
        Some(Digest::of_words(&format!("statement {number}")))
    }

    #[tokio::test(start_paused = true)]
    async fn pins_are_counted_and_timed_by_statement() {
        let book = Arc::new(PinBook::default());
        tokio::time::advance(Duration::from_secs(100)).await;
        let first = book.pinned(&pool(), PinReason::Listen, digest(1));
        tokio::time::advance(Duration::from_secs(2)).await;
        let second = book.pinned(&pool(), PinReason::Listen, digest(1));
        assert!(first.is_news && !second.is_news);
        tokio::time::advance(Duration::from_secs(3)).await;
        drop(first);
        tokio::time::advance(Duration::from_secs(4)).await;
        let other = book.filtered(&pool(), PinReason::TempObject, digest(1));
        assert!(other, "another reason is another entry");
        let records = book.records();
        assert_eq!(records.len(), 2);
        let record = &records[0];
        assert_eq!((record.now, record.pins, record.filtered), (1, 2, 0));
        assert_eq!(record.held, Duration::from_secs(5 + 7));
        assert_eq!(
            (records[1].now, records[1].pins, records[1].filtered),
            (0, 0, 1)
        );
        drop(second);
        tokio::time::advance(Duration::from_secs(50)).await;
        assert_eq!(
            (book.records()[0].now, book.records()[0].held),
            (0, Duration::from_secs(12))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_book_is_bounded_and_keeps_what_pins_now() {
        let book = Arc::new(PinBook::default());
        let held = book.pinned(&pool(), PinReason::Listen, digest(0));
        for number in 1..ENTRIES_MAX * 2 {
            drop(book.pinned(&pool(), PinReason::TempObject, digest(number)));
        }
        let records = book.records();
        assert_eq!(records.len(), ENTRIES_MAX);
        assert_eq!((&records[0].digest, records[0].now), (&digest(0), 1));
        let known = |number| records.iter().any(|record| record.digest == digest(number));
        assert!(known(ENTRIES_MAX * 2 - 1) && !known(1));
        drop(held);
        assert!(book.records().iter().all(|record| record.now == 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pin_that_was_forgotten_ends_nobody_elses() {
        let book = Arc::new(PinBook::default());
        let pins: Vec<_> = (0..=ENTRIES_MAX)
            .map(|number| book.pinned(&pool(), PinReason::Listen, digest(number)))
            .collect();
        // All pin now: the oldest went. It comes again as another.
        let again = book.pinned(&pool(), PinReason::Listen, digest(0));
        drop(pins);
        let now: u32 = book.records().iter().map(|record| record.now).sum();
        assert_eq!(now, 1);
        drop(again);
    }

    #[tokio::test(start_paused = true)]
    async fn the_log_is_not_flooded() {
        let book = Arc::new(PinBook::default());
        let told = |from: usize| {
            let told = (from..from + 100).filter(|&number| {
                let pin = book.pinned(&pool(), PinReason::TempObject, digest(number));
                pin.is_news
            });
            told.count()
        };
        assert_eq!(told(0), NEWS_A_MINUTE as usize);
        assert_eq!(told(1000), 0);
        tokio::time::advance(MINUTE).await;
        assert_eq!(told(2000), NEWS_A_MINUTE as usize);
    }
}
