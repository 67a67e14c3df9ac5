//! Connections that have not logged in yet: how many there may be, in all and from one address.
//!
//! Beyond the limit nobody new is refused, or whoever holds connections open and says nothing could keep everybody out.
//! Instead the one that has been silent longest makes room: a real login says something every few milliseconds.

use crate::config;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Counts strangers against the limits.
pub struct Strangers {
    max: usize,
    max_per_address: usize,
    present: Mutex<Present>,
}

/// Everyone by the turn of its last sign of life: the first has been silent longest.
#[derive(Default)]
struct Present {
    turn: u64,
    by_turn: BTreeMap<u64, Entry>,
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
}

struct Entry {
    address: Option<IpAddr>,
    /// Dropping it tells the stranger to go.
    _stay: oneshot::Sender<()>,
}

/// A stranger's place; dropping it makes room.
pub struct Place {
    strangers: Arc<Strangers>,
    turn: AtomicU64,
}

/// Ends when the stranger has to go.
pub struct Eviction(oneshot::Receiver<()>);

impl Eviction {
    /// Cancel-safe.
    pub async fn comes(&mut self) {
        let _ = (&mut self.0).await;
    }
}

impl Strangers {
    /// Nobody is there yet.
    pub fn new(config: &config::Limits) -> Arc<Self> {
        Arc::new(Self {
            max: config.max_logins_in_progress as usize,
            max_per_address: config
                .max_logins_in_progress_per_address
                .map_or(usize::MAX, |max| max as usize),
            present: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody has come. `address` is `None` for a Unix socket.
    pub fn enter(self: &Arc<Self>, address: Option<IpAddr>) -> (Place, Eviction) {
        let (stay, eviction) = oneshot::channel();
        let mut present = self.lock();
        let turn = present.insert(Entry {
            address,
            _stay: stay,
        });
        let of_address = address.and_then(|address| present.by_address.get(&address));
        if let Some(turns) = of_address
            && turns.len() > self.max_per_address
            && let Some(&longest_silent) = turns.first()
        {
            present.remove(longest_silent);
        }
        if present.by_turn.len() > self.max {
            present.evict_one();
        }
        let place = Place {
            strangers: self.clone(),
            turn: AtomicU64::new(turn),
        };
        (place, Eviction(eviction))
    }

    /// There is no descriptor left for somebody new: the longest silent one makes room.
    pub fn evict_one(&self) {
        self.lock().evict_one();
    }
}

impl Present {
    fn insert(&mut self, entry: Entry) -> u64 {
        self.turn += 1;
        let turn = self.turn;
        if let Some(address) = entry.address {
            self.by_address.entry(address).or_default().insert(turn);
        }
        self.by_turn.insert(turn, entry);
        turn
    }

    fn remove(&mut self, turn: u64) -> Option<Entry> {
        let entry = self.by_turn.remove(&turn)?;
        if let Some(address) = entry.address
            && let Some(turns) = self.by_address.get_mut(&address)
        {
            turns.remove(&turn);
            if turns.is_empty() {
                self.by_address.remove(&address);
            }
        }
        Some(entry)
    }

    fn evict_one(&mut self) {
        if let Some((&longest_silent, _)) = self.by_turn.first_key_value() {
            self.remove(longest_silent);
        }
    }
}

impl Place {
    /// The stranger has said something: those who are silent go first.
    pub fn heard(&self) {
        let mut present = self.strangers.lock();
        if let Some(entry) = present.remove(self.turn.load(Ordering::Relaxed)) {
            let turn = present.insert(entry);
            self.turn.store(turn, Ordering::Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.strangers
            .lock()
            .remove(self.turn.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn strangers(max: u32, per_address: Option<u32>) -> Arc<Strangers> {
        Strangers::new(&config::Limits {
            max_clients: 1,
            max_clients_per_user: None,
            max_clients_per_database: None,
            max_clients_per_address: None,
            max_logins_in_progress: max,
            max_logins_in_progress_per_address: per_address,
        })
    }

    fn from(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    fn must_go(stranger: &mut (Place, Eviction)) -> bool {
        stranger.1.comes().now_or_never().is_some()
    }

    #[test]
    fn the_longest_silent_makes_room() {
        let strangers = strangers(2, None);
        let mut first = strangers.enter(from(1));
        let mut second = strangers.enter(None);
        first.0.heard();
        let mut third = strangers.enter(from(1));
        assert!(!must_go(&mut first) && must_go(&mut second) && !must_go(&mut third));
        // Told to go, it can't come back by speaking.
        second.0.heard();
        drop(second);
        assert!(!must_go(&mut first) && !must_go(&mut third));
        strangers.evict_one();
        assert!(must_go(&mut first) && !must_go(&mut third));
    }

    #[test]
    fn an_address_makes_room_for_itself() {
        let strangers = strangers(10, Some(2));
        let mut other = strangers.enter(from(2));
        let mut of_one: Vec<_> = (0..3).map(|_| strangers.enter(from(1))).collect();
        let mut local: Vec<_> = (0..3).map(|_| strangers.enter(None)).collect();
        assert_eq!(
            of_one.iter_mut().map(must_go).collect::<Vec<_>>(),
            [true, false, false]
        );
        assert!(!must_go(&mut other) && !local.iter_mut().any(must_go));
    }

    #[test]
    fn who_has_left_counts_no_more() {
        let strangers = strangers(1, Some(1));
        for _ in 0..3 {
            let mut stranger = strangers.enter(from(1));
            assert!(!must_go(&mut stranger));
        }
        let present = strangers.lock();
        assert!(present.by_turn.is_empty() && present.by_address.is_empty());
    }
}
