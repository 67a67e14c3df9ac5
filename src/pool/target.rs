//! All pools of one target: they share its bound, and make room for each other.

use super::gate::{Gate, Member, PoolId, Ticket};
use super::lease::DiscardReason;
use super::manager::{BackendManager, Pooled, Recipe};
use super::pool::Pool;
use crate::backend::connect::Server;
use crate::config::{Config, MaxConnections};
use crate::drain::{DrainObserver, Phase};
use crate::ids::{Database, PoolKey, Role, TargetName};
use crate::metrics::{Metrics, TargetMetrics};
use crate::secrets::SecretStore;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// How often idle backends are looked at.
const REAP_EVERY: Duration = Duration::from_secs(1);

/// Backends used more recently than this are not counted as idle too many: between two transactions of a busy client
/// every backend is idle for a moment.
const IDLE_AT_LEAST: Duration = Duration::from_secs(5);

/// All pools of one target.
pub struct TargetPools {
    name: TargetName,
    gate: Arc<Gate>,
    recipe: Arc<Recipe>,
    max_idle_percent: usize,
    pools: RwLock<HashMap<(Database, Role), Arc<Pool>>>,
    /// Numbers the pools.
    made: AtomicUsize,
    metrics: Arc<Metrics>,
    target_metrics: TargetMetrics,
}

impl TargetPools {
    /// No pool yet; each is made when its first client comes. Must be called inside the runtime.
    pub fn new(
        config: &Config,
        server: Arc<Server>,
        secrets: Arc<SecretStore>,
        metrics: Arc<Metrics>,
        drain: DrainObserver,
    ) -> Arc<Self> {
        let limit = match config.pool.max_connections {
            MaxConnections::Count(count) => Some(count as usize),
            MaxConnections::Percent(_) => None,
        };
        let target_metrics = metrics.target(&config.target.name);
        target_metrics.set_allowed(limit.unwrap_or(0));
        let recipe = Recipe {
            server,
            secrets,
            prepared_statements_max: config.pool.max_prepared_statements as usize,
            init_query: config.pool.init_query.as_deref().map(Arc::from),
            max_connections: config.pool.max_connections,
            max_lifetime: config.pool.max_connection_lifetime,
            learned: watch::channel(None).0,
            asked: Mutex::default(),
            runtime: Handle::current(),
            stopping: AtomicBool::new(false),
            drain,
        };
        Arc::new(Self {
            name: TargetName::new(config.target.name.as_str()),
            gate: Gate::new(limit),
            recipe: Arc::new(recipe),
            max_idle_percent: usize::from(config.pool.max_idle_connections_percent),
            pools: RwLock::default(),
            made: AtomicUsize::new(0),
            metrics,
            target_metrics,
        })
    }

    /// The pool of one database and role, made if it is not there. `cap` bounds it within the target's bound.
    pub fn pool(
        self: &Arc<Self>,
        database: &Database,
        role: &Role,
        cap: Option<usize>,
    ) -> Arc<Pool> {
        let name = (database.clone(), role.clone());
        if let Some(pool) = self
            .pools
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&name)
        {
            return pool.clone();
        }
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        pools
            .entry(name)
            .or_insert_with(|| self.make(database, role, cap))
            .clone()
    }

    fn make(self: &Arc<Self>, database: &Database, role: &Role, cap: Option<usize>) -> Arc<Pool> {
        let id = PoolId(self.made.fetch_add(1, Ordering::Relaxed));
        let key = PoolKey {
            target: self.name.clone(),
            database: database.clone(),
            role: role.clone(),
        };
        let metrics = self
            .metrics
            .pool(self.name.as_str(), database.as_str(), role.as_str());
        let gate = self.gate.clone();
        let manager = BackendManager {
            key,
            gate,
            member: Member::new(id, cap),
            recipe: self.recipe.clone(),
            metrics,
        };
        Pool::new(manager, Arc::downgrade(self))
    }

    fn all(&self) -> Vec<Arc<Pool>> {
        self.pools
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Closes one idle backend of another pool than `except`: of the one with most of them.
    pub(super) fn evict_one(&self, except: PoolId, ticket: &Ticket) {
        let Some(eviction) = ticket.try_evict() else {
            return;
        };
        // The permit comes free when the server has closed its end; until then no other backend is evicted for it.
        match self.take_from_richest(except) {
            Some(mut evicted) => evicted.evicted = Some(eviction),
            None => eviction.unused(),
        }
    }

    fn take_from_richest(&self, except: PoolId) -> Option<Pooled> {
        let mut pools = self.all();
        pools.retain(|pool| pool.id() != except && pool.idle_count() > 0);
        pools.sort_by_key(|pool| std::cmp::Reverse(pool.idle_count()));
        // Somebody may be quicker: then the next richest.
        pools
            .iter()
            .find_map(|pool| pool.take_idle(1, |_, _| Some(DiscardReason::Evicted)).pop())
    }

    /// Closes the idle backends of every database whose name stands somewhere in a text, in whatever case: where it is
    /// part of another word, they are closed for nothing.
    pub(super) fn leave_databases(&self, text: &[u8]) {
        for pool in self.all() {
            let name = pool.key().database.as_str().as_bytes();
            let is_named = text
                .windows(name.len().max(1))
                .any(|part| part.eq_ignore_ascii_case(name));
            if is_named {
                drop(pool.take_idle(usize::MAX, |_, _| Some(DiscardReason::DatabaseDdl)));
            }
        }
    }

    /// Looks after idle backends until the drain: closes what is dead, too old, or too many; follows the server's
    /// max_connections.
    pub async fn look_after(self: Arc<Self>) {
        let mut drain = self.recipe.drain.clone();
        let mut learned = self.recipe.learned.subscribe();
        let mut tick = tokio::time::interval(REAP_EVERY);
        loop {
            tokio::select! {
                () = drain.reached(Phase::Draining) => return,
                Ok(()) = learned.changed() => {
                    if let Some(limit) = *learned.borrow_and_update() {
                        self.set_limit(limit);
                    }
                }
                _ = tick.tick() => self.reap(),
            }
        }
    }

    fn set_limit(&self, limit: usize) {
        self.target_metrics.set_allowed(limit);
        self.gate.set_limit(limit);
    }

    fn reap(&self) {
        let pools = self.all();
        let kept = self
            .gate
            .limit()
            .map_or(usize::MAX, |limit| limit * self.max_idle_percent / 100);
        let idle: usize = pools.iter().map(|pool| pool.idle_count()).sum();
        let mut surplus = idle.saturating_sub(kept);
        for pool in pools {
            let taken = pool.take_idle(usize::MAX, |pooled, metrics| {
                if pooled.has_news() {
                    return Some(DiscardReason::ServerClosed);
                }
                if pooled.expired() {
                    return Some(DiscardReason::Lifetime);
                }
                let too_many = surplus > 0 && metrics.last_used() >= IDLE_AT_LEAST;
                surplus -= usize::from(too_many);
                too_many.then_some(DiscardReason::Idle)
            });
            drop(taken);
        }
        self.forget_unused();
    }

    /// Forgets pools that nobody uses and that have no backend: clients may name databases without end. A name that
    /// never led to a backend leaves no metrics behind, either.
    fn forget_unused(&self) {
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|(database, role), pool| {
            // While the lock is held nobody else can get at what only the map holds.
            if Arc::strong_count(pool) > 1 || pool.size() > 0 {
                return true;
            }
            let metrics = pool.metrics();
            if metrics.has_succeeded() {
                return false;
            }
            // A connection nobody waits for may still be in the making.
            let connecting = metrics.has_connections();
            if !connecting {
                self.metrics
                    .forget_pool(self.name.as_str(), database.as_str(), role.as_str());
            }
            connecting
        });
    }

    /// Closes every idle backend, and from now on every one that comes back: the proxy is stopping.
    pub fn close_idle(&self) {
        self.recipe.stopping.store(true, Ordering::Release);
        for pool in self.all() {
            drop(pool.take_idle(usize::MAX, |_, _| Some(DiscardReason::Draining)));
        }
    }
}
