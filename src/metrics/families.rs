//! The metric families: names, help texts, labels.

use super::listen::ListenFamilies;
use super::picture::Picture;
use prometheus::core::Collector;
use prometheus::{
    CounterVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry,
};

/// Seconds: from a tenth of a millisecond, about what a local query takes, to a minute.
const BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0,
];

pub(super) const POOL: &[&str] = &["target", "role", "database", "user"];
const SESSION: &[&str] = &["endpoint", "database", "user"];

/// All families.
pub(super) struct Families {
    /// Taken at each scrape.
    pub(super) picture: Picture,
    pub(super) client: ClientFamilies,
    pub(super) pool: PoolFamilies,
}

/// What clients and their queries are counted in.
pub(super) struct ClientFamilies {
    pub(super) client_connections: IntGaugeVec,
    pub(super) received: IntCounterVec,
    pub(super) setup: IntCounterVec,
    pub(super) closed: IntCounterVec,
    pub(super) queries: IntCounterVec,
    pub(super) query_seconds: HistogramVec,
    pub(super) query_database_seconds: HistogramVec,
}

/// What pools, targets and their database connections are counted in.
pub(super) struct PoolFamilies {
    pub(super) waiting: IntGaugeVec,
    pub(super) database_connections: IntGaugeVec,
    pub(super) borrowed: IntGaugeVec,
    pub(super) in_transaction: IntGaugeVec,
    pub(super) pin: PinFamilies,
    pub(super) requests: IntCounterVec,
    pub(super) database_setup: IntCounterVec,
    pub(super) borrow_seconds: HistogramVec,
    pub(super) allowed: IntGaugeVec,
    pub(super) up: IntGaugeVec,
    pub(super) replays: IntCounterVec,
    pub(super) listen: ListenFamilies,
}

/// What pins are counted in, by pool and reason.
#[derive(Clone)]
pub(super) struct PinFamilies {
    pub(super) pinned: IntGaugeVec,
    pub(super) pins: IntCounterVec,
    pub(super) unpins: IntCounterVec,
    pub(super) seconds: CounterVec,
    pub(super) filtered: IntCounterVec,
}

/// Registers families. The names and labels are constants, so registering them can't fail.
pub(super) struct Registrar<'a>(&'a Registry);

#[allow(clippy::expect_used)] // constants: a test renders them all
impl Registrar<'_> {
    fn add<C: Collector + Clone + 'static>(&self, family: prometheus::Result<C>) -> C {
        let family = family.expect("valid names");
        self.0
            .register(Box::new(family.clone()))
            .expect("distinct names");
        family
    }

    pub(super) fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(
            Opts::new(format!("pgsluice_{name}"), help),
            labels,
        ))
    }

    pub(super) fn counter(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(
            Opts::new(format!("pgsluice_{name}"), help),
            labels,
        ))
    }

    /// A counter of seconds.
    fn seconds(&self, name: &str, help: &str, labels: &[&str]) -> CounterVec {
        self.add(CounterVec::new(
            Opts::new(format!("pgsluice_{name}"), help),
            labels,
        ))
    }

    fn histogram(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let opts = HistogramOpts::new(format!("pgsluice_{name}"), help).buckets(BUCKETS.to_vec());
        self.add(HistogramVec::new(opts, labels))
    }
}

impl Families {
    pub(super) fn register(registry: &Registry) -> Self {
        let r = Registrar(registry);
        let build = r.gauge(
            "build_info",
            "Always 1; the version is in the label.",
            &["version"],
        );
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Self {
            picture: Picture::default(),
            client: ClientFamilies::register(&r),
            pool: PoolFamilies::register(&r),
        }
    }
}

fn with(labels: &[&'static str], more: &[&'static str]) -> Vec<&'static str> {
    [labels, more].concat()
}

impl ClientFamilies {
    fn register(r: &Registrar<'_>) -> Self {
        Self {
            client_connections: r.gauge(
                "client_connections",
                "Clients connected now (RDS Proxy: ClientConnections, ClientConnectionsTLS, ClientConnectionsNoTLS).",
                &["endpoint", "tls"],
            ),
            received: r.counter(
                "client_connections_received_total",
                "Connections accepted (RDS Proxy: ClientConnectionsReceived).",
                &["endpoint"],
            ),
            setup: r.counter(
                "client_connections_setup_total",
                "Logins by result (RDS Proxy: ClientConnectionsSetupSucceeded, ClientConnectionsSetupFailedAuth).",
                &["endpoint", "result"],
            ),
            closed: r.counter(
                "client_connections_closed_total",
                "Sessions ended by reason (RDS Proxy: ClientConnectionsClosed).",
                &["endpoint", "reason"],
            ),
            queries: r.counter(
                "query_requests_total",
                "Queries received (RDS Proxy: QueryRequests, QueryRequestsTLS, QueryRequestsNoTLS).",
                &with(SESSION, &["tls"]),
            ),
            query_seconds: r.histogram(
                "query_seconds",
                "From a request's arrival to its last reply, waiting for a connection included (RDS Proxy: QueryResponseLatency).",
                SESSION,
            ),
            query_database_seconds: r.histogram(
                "query_database_seconds",
                "From a request's departure to the database to its last reply (RDS Proxy: QueryDatabaseResponseLatency).",
                SESSION,
            ),
        }
    }
}

impl PoolFamilies {
    fn register(r: &Registrar<'_>) -> Self {
        Self {
            waiting: r.gauge(
                "clients_waiting",
                "Clients waiting for a database connection now.",
                POOL,
            ),
            database_connections: r.gauge(
                "database_connections",
                "Database connections now, by state (RDS Proxy: DatabaseConnections, DatabaseConnectionsWithTLS).",
                &with(POOL, &["state", "tls"]),
            ),
            borrowed: r.gauge(
                "database_connections_borrowed",
                "Lent to a client now (RDS Proxy: DatabaseConnectionsCurrentlyBorrowed).",
                POOL,
            ),
            in_transaction: r.gauge(
                "database_connections_in_transaction",
                "Inside a transaction block now (RDS Proxy: DatabaseConnectionsCurrentlyInTransaction).",
                POOL,
            ),
            pin: PinFamilies::register(r),
            requests: r.counter(
                "database_connection_requests_total",
                "Borrows asked for (RDS Proxy: DatabaseConnectionRequests).",
                POOL,
            ),
            database_setup: r.counter(
                "database_connection_setup_total",
                "Database logins by result (RDS Proxy: DatabaseConnectionsSetupSucceeded, DatabaseConnectionsSetupFailed).",
                &with(POOL, &["result"]),
            ),
            borrow_seconds: r.histogram(
                "database_connection_borrow_seconds",
                "How long clients waited for a database connection (RDS Proxy: DatabaseConnectionsBorrowLatency).",
                POOL,
            ),
            allowed: r.gauge(
                "database_connections_allowed",
                "The most database connections to a target; 0 until the server has told its max_connections (RDS Proxy: MaxDatabaseConnectionsAllowed).",
                &["target", "role"],
            ),
            up: r.gauge(
                "target_up",
                "0 if the last attempt to connect to the target got no answer, or that it serves nobody now (RDS Proxy: AvailabilityPercentage).",
                &["target", "role"],
            ),
            replays: r.counter(
                "state_replays_total",
                "Times a session's settings were given to another database connection.",
                POOL,
            ),
            listen: ListenFamilies::register(r),
        }
    }
}

impl PinFamilies {
    fn register(r: &Registrar<'_>) -> Self {
        let by_reason = with(POOL, &["reason"]);
        Self {
            pinned: r.gauge(
                "database_connections_session_pinned",
                "Kept by a session now, by reason (RDS Proxy: DatabaseConnectionsCurrentlySessionPinned).",
                &by_reason,
            ),
            pins: r.counter("pins_total", "Sessions pinned, by reason.", &by_reason),
            unpins: r.counter("unpins_total", "Pins ended, by reason.", &by_reason),
            seconds: r.seconds(
                "pinned_seconds_total",
                "How long backends were kept by pins that have ended, by reason.",
                &by_reason,
            ),
            filtered: r.counter(
                "pins_filtered_total",
                "Pins that session_pinning_filters prevented, by reason: what the session had left was thrown away.",
                &by_reason,
            ),
        }
    }
}
