//! Prometheus metrics. The prometheus crate stays behind this folder.
//!
//! Every handle is resolved once, when its session, pool or endpoint is made: the data path only adds to atomics. The
//! RDS Proxy name of each family is in its help text.

mod families;
mod handles;
mod listen;
mod picture;

pub use handles::{
    BackendGauge, BackendState, ClientGauge, EndpointMetrics, PinGuard, PoolMetrics,
    SessionMetrics, SetupResult, TargetMetrics, TransactionGuard, WaitingGuard,
};
pub use listen::{ListenGuard, ListenMetrics};

use families::Families;
use prometheus::{Encoder, Registry, TextEncoder};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Distinct pairs of database and user in labels; beyond it both are `other`.
const LABEL_PAIRS_MAX: usize = 500;

/// What stands in for labels beyond the bound.
const OTHER: &str = "other";

/// All metrics of the proxy.
pub struct Metrics {
    registry: Registry,
    families: Families,
    pairs: Mutex<HashMap<(String, String), ()>>,
    sessions: Mutex<HashMap<SessionLabels, Arc<SessionMetrics>>>,
    pools: Mutex<HashMap<PoolLabels, Arc<PoolMetrics>>>,
}

/// Endpoint, database, user, TLS.
type SessionLabels = (String, String, String, bool);

/// Target, database, user.
type PoolLabels = (String, String, String);

impl Metrics {
    /// Registers every family.
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        Arc::new(Self {
            families: Families::register(&registry),
            registry,
            pairs: Mutex::default(),
            sessions: Mutex::default(),
            pools: Mutex::default(),
        })
    }

    /// Everything, in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        let taking = self.families.picture.taking();
        let gathered = self.registry.gather();
        drop(taking);
        if let Err(error) = TextEncoder::new().encode(&gathered, &mut text) {
            tracing::error!(%error, "the metrics could not be written");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The metrics of a listener.
    pub fn endpoint(&self, name: &str) -> EndpointMetrics {
        EndpointMetrics::new(&self.families, name)
    }

    /// The metrics of a target.
    pub fn target(&self, name: &str) -> TargetMetrics {
        TargetMetrics::new(&self.families, name)
    }

    /// The metrics that sessions with these labels share.
    pub fn session(
        &self,
        endpoint: &str,
        database: &str,
        user: &str,
        tls: bool,
    ) -> Arc<SessionMetrics> {
        let (database, user) = self.bounded(database, user);
        let labels = (endpoint.to_owned(), database.clone(), user.clone(), tls);
        shared(&self.sessions, labels, || {
            SessionMetrics::new(&self.families, endpoint, [&database, &user], tls)
        })
    }

    /// The metrics of a pool.
    pub fn pool(&self, target: &str, database: &str, user: &str) -> Arc<PoolMetrics> {
        let (database, user) = self.bounded(database, user);
        let labels = (target.to_owned(), database.clone(), user.clone());
        shared(&self.pools, labels, || {
            PoolMetrics::new(&self.families, target, &database, &user)
        })
    }

    /// A pool without a single database login is gone: its names make room for others.
    pub fn forget_pool(&self, target: &str, database: &str, user: &str) {
        let pair = (database.to_owned(), user.to_owned());
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        if pairs.remove(&pair).is_none() {
            // It was among the others.
            return;
        }
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.remove(&(target.to_owned(), database.to_owned(), user.to_owned()));
        PoolMetrics::forget(&self.families, target, database, user);
    }

    fn bounded(&self, database: &str, user: &str) -> (String, String) {
        let pair = (database.to_owned(), user.to_owned());
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        if pairs.len() >= LABEL_PAIRS_MAX && !pairs.contains_key(&pair) {
            return (OTHER.into(), OTHER.into());
        }
        pairs.insert(pair.clone(), ());
        pair
    }
}

fn shared<K: Hash + Eq, V>(
    all: &Mutex<HashMap<K, Arc<V>>>,
    key: K,
    make: impl FnOnce() -> V,
) -> Arc<V> {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    all.entry(key).or_insert_with(|| Arc::new(make())).clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    fn value(metrics: &Metrics, start: &str) -> Option<f64> {
        let text = metrics.render();
        let line = text.lines().find(|line| line.starts_with(start))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    #[test]
    fn clients_and_backends_are_counted_while_they_live() {
        let metrics = Metrics::new();
        let endpoint = metrics.endpoint("e");
        let plain = "pgsluice_client_connections{endpoint=\"e\",tls=\"no\"}";
        assert_eq!(value(&metrics, plain), Some(0.0));
        let client = endpoint.connected(false);
        assert_eq!(value(&metrics, plain), Some(1.0));
        drop(client);
        assert_eq!(value(&metrics, plain), Some(0.0));

        let pool = metrics.pool("t", "d", "u");
        let series = |state: &str| {
            format!(
                "pgsluice_database_connections{{database=\"d\",role=\"read_write\",\
                 state=\"{state}\",target=\"t\",tls=\"no\",user=\"u\"}}"
            )
        };
        let mut backend = pool.connection();
        assert_eq!(value(&metrics, &series("connecting")), Some(1.0));
        backend.set_state(BackendState::Idle);
        assert_eq!(value(&metrics, &series("connecting")), Some(0.0));
        assert_eq!(value(&metrics, &series("idle")), Some(1.0));
        backend.set_tls(true);
        assert_eq!(value(&metrics, &series("idle")), Some(0.0));
        drop(backend);
        assert_eq!(value(&metrics, &series("closing")), Some(0.0));
    }

    #[test]
    fn a_backend_that_moves_is_seen_once() {
        let metrics = Metrics::new();
        let mut backend = metrics.pool("t", "d", "u").connection();
        let seen = |text: &str| -> f64 {
            let lines = text.lines();
            let states = lines.filter(|line| line.starts_with("pgsluice_database_connections{"));
            let counts = states.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            counts.sum()
        };
        let over = AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    backend.set_state(BackendState::Borrowed);
                    backend.set_state(BackendState::Idle);
                }
            });
            let all: Vec<f64> = (0..500).map(|_| seen(&metrics.render())).collect();
            over.store(true, Ordering::Relaxed);
            assert!(all.iter().all(|seen| *seen == 1.0), "{all:?}");
        });
    }

    #[tokio::test(start_paused = true)]
    async fn pins_are_counted_as_they_come_and_go() {
        let metrics = Metrics::new();
        let pool = metrics.pool("t", "d", "u");
        let pin = pool.pinned("listen");
        assert_eq!(value(&metrics, "pgsluice_pins_total{"), Some(1.0));
        assert_eq!(
            value(&metrics, "pgsluice_database_connections_session_pinned"),
            Some(1.0)
        );
        tokio::time::advance(Duration::from_millis(1500)).await;
        drop(pin);
        assert_eq!(value(&metrics, "pgsluice_unpins_total{"), Some(1.0));
        assert_eq!(value(&metrics, "pgsluice_pinned_seconds_total{"), Some(1.5));
        assert_eq!(
            value(&metrics, "pgsluice_database_connections_session_pinned"),
            Some(0.0)
        );
    }

    #[test]
    fn every_family_is_documented() {
        let metrics = Metrics::new();
        let endpoint = metrics.endpoint("e");
        endpoint.closed("x");
        drop(metrics.pool("t", "d", "u").pinned("x"));
        metrics.pool("t", "d", "u").pin_filtered("x");
        metrics.session("e", "d", "u", false).queries(1);
        metrics.target("t");
        let page = include_str!("../../docs/METRICS.md");
        let text = metrics.render();
        let mut families = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        assert!(families.clone().count() > 15);
        assert!(families.all(|family| {
            let name = family.split(' ').next().unwrap();
            assert!(
                page.contains(&format!("`{name}`")),
                "{name} is not in docs/METRICS.md"
            );
            true
        }));
    }

    #[test]
    fn a_forgotten_pool_leaves_no_series_and_its_place_to_another() {
        let metrics = Metrics::new();
        let empty = metrics.render();
        let series = |name: &str| {
            let name = format!("database=\"{name}\"");
            metrics
                .render()
                .lines()
                .filter(|line| line.contains(&name))
                .count()
        };
        for number in 0..LABEL_PAIRS_MAX * 2 {
            let name = format!("d{number}");
            metrics.pool("t", &name, "u").requested();
            assert!(series(&name) > 0);
            metrics.forget_pool("t", &name, "u");
        }
        metrics.target("t");
        let left: Vec<_> = metrics.render().lines().map(str::to_owned).collect();
        assert!(left.len() <= empty.lines().count() + 6, "{left:#?}");
        metrics.pool("t", "real", "u").requested();
        assert!(series("real") > 0);
        assert_eq!(series(OTHER), 0);
    }

    #[test]
    fn label_pairs_are_bounded() {
        let metrics = Metrics::new();
        for number in 0..LABEL_PAIRS_MAX + 50 {
            metrics.pool("t", "d", &format!("u{number}")).requested();
        }
        let series = metrics
            .render()
            .lines()
            .filter(|line| line.starts_with("pgsluice_database_connection_requests_total{"))
            .count();
        assert_eq!(series, LABEL_PAIRS_MAX + 1);
    }
}
