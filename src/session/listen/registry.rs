//! The listeners of a target, one a database at most, and who may found one.

use super::hub::{Hub, Membership};
use super::inbox::Fault;
use super::sql::{Channel, Marker};
use super::task;
use crate::drain::DrainWatch;
use crate::ids::Database;
use crate::pool::{Lease, Pool};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A database's hub, and the pool that its connection is from.
type Hubs = HashMap<Database, (Arc<Hub>, Arc<Pool>)>;

/// All listeners of one target.
pub struct Listeners {
    hubs: Mutex<Hubs>,
    /// Tells this process's markers from those of others before the same server.
    process: u128,
    markers: AtomicU64,
}

impl Default for Listeners {
    fn default() -> Self {
        Self {
            hubs: Mutex::default(),
            process: rand::random(),
            markers: AtomicU64::new(0),
        }
    }
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listeners").finish_non_exhaustive()
    }
}

/// How a session comes to its listener.
pub enum Joined {
    /// There is one.
    Member(Membership),
    /// There is none: the session's own backend can become it.
    Founder(Founding),
    /// There is none, and there can't be one more.
    Refused,
}

/// A listener without a connection; dropped without one, who has joined meanwhile is told.
pub struct Founding {
    listeners: Arc<Listeners>,
    database: Database,
    hub: Arc<Hub>,
    founder: Option<Membership>,
}

impl fmt::Debug for Founding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Founding").finish_non_exhaustive()
    }
}

impl Listeners {
    fn lock(&self) -> MutexGuard<'_, Hubs> {
        self.hubs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session of `pool` wants to hear channels. `may_found`: its backend has nothing but them to keep it.
    pub fn join(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        channels: Vec<Channel>,
        may_found: bool,
    ) -> Joined {
        let mut hubs = self.lock();
        let all = hubs.len();
        let of_pool = (hubs.values().filter(|(_, other)| Arc::ptr_eq(other, pool))).count();
        match hubs.entry(pool.key().database.clone()) {
            Entry::Occupied(entry) => match entry.get().0.join(channels) {
                Some(mut member) => {
                    member.count(pool.listening());
                    Joined::Member(member)
                }
                None => Joined::Refused,
            },
            Entry::Vacant(_) if !may_found || !pool.has_room_for_listener(all, of_pool) => {
                Joined::Refused
            }
            Entry::Vacant(entry) => {
                let hub = Arc::new(Hub::default());
                let mut founder = hub.join(channels);
                if let Some(founder) = &mut founder {
                    founder.count(pool.listening());
                }
                entry.insert((hub.clone(), pool.clone()));
                Joined::Founder(Founding {
                    listeners: self.clone(),
                    database: pool.key().database.clone(),
                    hub,
                    founder,
                })
            }
        }
    }

    /// A place in the queue of notifications that was never used before.
    pub fn marker(&self) -> Marker {
        Marker::new(self.process, self.markers.fetch_add(1, Ordering::Relaxed))
    }

    /// Takes a hub that nobody uses off the list; false if somebody has come.
    pub(super) fn retire(&self, database: &Database, hub: &Hub) -> bool {
        let mut hubs = self.lock();
        let unused = hub.retire();
        if unused {
            hubs.remove(database);
        }
        unused
    }

    /// Takes a hub off the list whose connection is lost, and tells its members.
    pub(super) fn close(&self, database: &Database, hub: &Hub, fault: &Fault) {
        let mut hubs = self.lock();
        hub.close(fault);
        hubs.remove(database);
    }
}

impl Founding {
    /// The session's backend becomes the listener. It is at rest, what it has sent before is the session's, and it
    /// listens to the session's channels and to markers.
    pub fn start(mut self, lease: Lease, watch: DrainWatch) -> Option<Membership> {
        let founder = self.founder.take()?;
        self.hub.begin_with(&founder);
        let (listeners, hub) = (self.listeners.clone(), self.hub.clone());
        let database = self.database.clone();
        tokio::spawn(task::run(listeners, database, hub, lease, watch));
        Some(founder)
    }
}

impl Drop for Founding {
    fn drop(&mut self) {
        if self.founder.is_some() {
            let fault = Fault::Lost("the listener could not be started".into());
            self.listeners.close(&self.database, &self.hub, &fault);
        }
    }
}
