//! Handles with their labels resolved, and guards that count something for as long as it lives.

use super::families::{Families, PinFamilies};
use super::listen::ListenMetrics;
use super::picture::Picture;
use prometheus::{Counter, Histogram, IntCounter, IntCounterVec, IntGauge};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What every target is, until there are read-only endpoints.
const ROLE: &str = "read_write";

fn yes_no(tls: bool) -> &'static str {
    if tls { "yes" } else { "no" }
}

/// How a login ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetupResult {
    /// The client is in.
    Succeeded,
    /// Wrong password, unknown role.
    FailedAuth,
    /// Not the protocol, or broken off.
    FailedProtocol,
    /// A limit of clients.
    FailedLimit,
    /// It took longer than `login_timeout`.
    FailedTimeout,
    /// The database refused, or no connection was free.
    FailedBackend,
    /// The proxy is stopping.
    FailedDraining,
}

impl SetupResult {
    const ALL: [SetupResult; 7] = [
        SetupResult::Succeeded,
        SetupResult::FailedAuth,
        SetupResult::FailedProtocol,
        SetupResult::FailedLimit,
        SetupResult::FailedTimeout,
        SetupResult::FailedBackend,
        SetupResult::FailedDraining,
    ];

    fn label(self) -> &'static str {
        match self {
            SetupResult::Succeeded => "succeeded",
            SetupResult::FailedAuth => "failed_auth",
            SetupResult::FailedProtocol => "failed_protocol",
            SetupResult::FailedLimit => "failed_limit",
            SetupResult::FailedTimeout => "failed_timeout",
            SetupResult::FailedBackend => "failed_backend",
            SetupResult::FailedDraining => "failed_draining",
        }
    }
}

/// A listener's metrics.
#[derive(Clone)]
pub struct EndpointMetrics {
    name: Arc<str>,
    received: IntCounter,
    setup: IntCounterVec,
    closed: IntCounterVec,
    plain: IntGauge,
    encrypted: IntGauge,
}

impl EndpointMetrics {
    pub(super) fn new(families: &Families, name: &str) -> Self {
        for result in SetupResult::ALL {
            families
                .client
                .setup
                .with_label_values(&[name, result.label()]);
        }
        let clients = |tls| {
            families
                .client
                .client_connections
                .with_label_values(&[name, yes_no(tls)])
        };
        Self {
            name: name.into(),
            received: families.client.received.with_label_values(&[name]),
            setup: families.client.setup.clone(),
            closed: families.client.closed.clone(),
            plain: clients(false),
            encrypted: clients(true),
        }
    }

    /// A connection was accepted.
    pub fn received(&self) {
        self.received.inc();
    }

    /// A login has ended.
    pub fn setup(&self, result: SetupResult) {
        self.setup
            .with_label_values(&[&*self.name, result.label()])
            .inc();
    }

    /// A session has ended.
    pub fn closed(&self, reason: &'static str) {
        self.closed.with_label_values(&[&*self.name, reason]).inc();
    }

    /// A client is connected, until the guard is dropped.
    pub fn connected(&self, tls: bool) -> ClientGauge {
        ClientGauge(Counted::new(if tls {
            &self.encrypted
        } else {
            &self.plain
        }))
    }
}

/// Adds one to a gauge while it lives.
#[derive(Debug)]
pub(super) struct Counted(IntGauge);

impl Counted {
    pub(super) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A connected client.
pub struct ClientGauge(#[allow(dead_code)] Counted);

/// A client that waits for a backend.
pub struct WaitingGuard(#[allow(dead_code)] Counted);

/// A backend inside a transaction block.
pub struct TransactionGuard(#[allow(dead_code)] Counted);

/// A pinned backend.
pub struct PinGuard {
    _pinned: Counted,
    unpins: IntCounter,
    seconds: Counter,
    since: Instant,
}

impl Drop for PinGuard {
    fn drop(&mut self) {
        self.unpins.inc();
        self.seconds.inc_by(self.since.elapsed().as_secs_f64());
    }
}

/// What sessions with the same labels share.
pub struct SessionMetrics {
    queries: IntCounter,
    query_seconds: Histogram,
    query_database_seconds: Histogram,
}

impl SessionMetrics {
    pub(super) fn new(families: &Families, endpoint: &str, pair: [&str; 2], tls: bool) -> Self {
        let labels = [endpoint, pair[0], pair[1]];
        let with_tls = [endpoint, pair[0], pair[1], yes_no(tls)];
        Self {
            queries: families.client.queries.with_label_values(&with_tls),
            query_seconds: families.client.query_seconds.with_label_values(&labels),
            query_database_seconds: families
                .client
                .query_database_seconds
                .with_label_values(&labels),
        }
    }

    /// Queries were sent to the database.
    pub fn queries(&self, count: u32) {
        self.queries.inc_by(count.into());
    }

    /// From a request's arrival to its last reply.
    pub fn query_took(&self, time: Duration) {
        self.query_seconds.observe(time.as_secs_f64());
    }

    /// From a request's departure to its last reply.
    pub fn database_took(&self, time: Duration) {
        self.query_database_seconds.observe(time.as_secs_f64());
    }
}

/// What a backend is doing, as the metrics tell it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendState {
    /// Being made.
    Connecting,
    /// In its pool.
    Idle,
    /// Lent.
    Borrowed,
    /// Being closed.
    Closing,
}

impl BackendState {
    const ALL: [BackendState; 4] = [
        BackendState::Connecting,
        BackendState::Idle,
        BackendState::Borrowed,
        BackendState::Closing,
    ];

    fn label(self) -> &'static str {
        match self {
            BackendState::Connecting => "connecting",
            BackendState::Idle => "idle",
            BackendState::Borrowed => "borrowed",
            BackendState::Closing => "closing",
        }
    }
}

/// A pool's metrics of pins for one reason.
struct PinHandles {
    pinned: IntGauge,
    pins: IntCounter,
    unpins: IntCounter,
    seconds: Counter,
}

/// A pool's metrics.
pub struct PoolMetrics {
    labels: [String; 4],
    requests: IntCounter,
    borrow_seconds: Histogram,
    waiting: IntGauge,
    borrowed: IntGauge,
    in_transaction: IntGauge,
    succeeded: IntCounter,
    failed: IntCounter,
    /// By state, plain then encrypted.
    states: Arc<[[IntGauge; 2]; 4]>,
    picture: Picture,
    pin: PinFamilies,
    replays: IntCounter,
    /// What it does with listening.
    pub listen: ListenMetrics,
    pin_handles: Mutex<HashMap<&'static str, PinHandles>>,
    up: IntGauge,
}

impl PoolMetrics {
    pub(super) fn new(families: &Families, target: &str, database: &str, user: &str) -> Self {
        let labels = [target, ROLE, database, user];
        let with = |more: &str| [target, ROLE, database, user, more].map(str::to_owned);
        let gauge = |state: BackendState, tls| {
            families.pool.database_connections.with_label_values(&[
                target,
                ROLE,
                database,
                user,
                state.label(),
                yes_no(tls),
            ])
        };
        let states = BackendState::ALL.map(|state| [gauge(state, false), gauge(state, true)]);
        Self {
            labels: labels.map(str::to_owned),
            requests: families.pool.requests.with_label_values(&labels),
            borrow_seconds: families.pool.borrow_seconds.with_label_values(&labels),
            waiting: families.pool.waiting.with_label_values(&labels),
            borrowed: families.pool.borrowed.with_label_values(&labels),
            in_transaction: families.pool.in_transaction.with_label_values(&labels),
            succeeded: families
                .pool
                .database_setup
                .with_label_values(&with("succeeded")),
            failed: families
                .pool
                .database_setup
                .with_label_values(&with("failed")),
            states: Arc::new(states),
            picture: families.picture.clone(),
            pin: families.pool.pin.clone(),
            replays: families.pool.replays.with_label_values(&labels),
            listen: ListenMetrics::new(&families.pool.listen, &labels),
            pin_handles: Mutex::default(),
            up: families.pool.up.with_label_values(&[target, ROLE]),
        }
    }

    /// A borrow was asked for.
    pub fn requested(&self) {
        self.requests.inc();
    }

    /// A borrow was answered.
    pub fn borrow_waited(&self, time: Duration) {
        self.borrow_seconds.observe(time.as_secs_f64());
    }

    /// A client waits, until the guard is dropped.
    pub fn waiting(&self) -> WaitingGuard {
        WaitingGuard(Counted::new(&self.waiting))
    }

    /// A backend was lent (1) or came back (-1).
    pub fn borrowed(&self, by: i64) {
        self.borrowed.add(by);
    }

    /// A backend is inside a transaction, until the guard is dropped.
    pub fn in_transaction(&self) -> TransactionGuard {
        TransactionGuard(Counted::new(&self.in_transaction))
    }

    /// A database login has ended. `reachable` says whether the server can serve anybody at all.
    pub fn setup(&self, succeeded: bool, reachable: bool) {
        if succeeded {
            self.succeeded.inc()
        } else {
            self.failed.inc()
        }
        self.up.set(reachable.into());
    }

    /// Has a database login ever succeeded?
    pub fn has_succeeded(&self) -> bool {
        self.succeeded.get() > 0
    }

    /// Are there any database connections now, in whatever state?
    pub fn has_connections(&self) -> bool {
        self.states.iter().flatten().any(|gauge| gauge.get() > 0)
    }

    /// Takes the series of a pool that never had a backend away.
    pub(super) fn forget(families: &Families, target: &str, database: &str, user: &str) {
        let labels = [target, ROLE, database, user];
        for family in [
            &families.pool.waiting,
            &families.pool.borrowed,
            &families.pool.in_transaction,
        ] {
            let _ = family.remove_label_values(&labels);
        }
        families.pool.listen.forget(&labels);
        for family in [&families.pool.requests, &families.pool.replays] {
            let _ = family.remove_label_values(&labels);
        }
        let _ = families.pool.borrow_seconds.remove_label_values(&labels);
        for result in ["succeeded", "failed"] {
            let labels = [target, ROLE, database, user, result];
            let _ = families.pool.database_setup.remove_label_values(&labels);
        }
        for (state, tls) in BackendState::ALL
            .into_iter()
            .flat_map(|state| [(state, false), (state, true)])
        {
            let labels = [target, ROLE, database, user, state.label(), yes_no(tls)];
            let _ = families
                .pool
                .database_connections
                .remove_label_values(&labels);
        }
    }

    /// A session's settings were given to another backend.
    pub fn replayed(&self) {
        self.replays.inc();
    }

    /// A backend is being made; counted until the gauge is dropped.
    pub fn connection(&self) -> BackendGauge {
        let gauge = BackendGauge {
            states: self.states.clone(),
            picture: self.picture.clone(),
            state: BackendState::Connecting,
            tls: false,
        };
        gauge.current().inc();
        gauge
    }

    /// A backend is pinned for a reason, until the guard is dropped.
    pub fn pinned(&self, reason: &'static str) -> PinGuard {
        let mut handles = self
            .pin_handles
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let handles = handles.entry(reason).or_insert_with(|| {
            let labels = self.with_reason(reason);
            PinHandles {
                pinned: self.pin.pinned.with_label_values(&labels),
                pins: self.pin.pins.with_label_values(&labels),
                unpins: self.pin.unpins.with_label_values(&labels),
                seconds: self.pin.seconds.with_label_values(&labels),
            }
        });
        handles.pins.inc();
        PinGuard {
            _pinned: Counted::new(&handles.pinned),
            unpins: handles.unpins.clone(),
            seconds: handles.seconds.clone(),
            since: Instant::now(),
        }
    }

    /// A backend would be pinned for a reason, were it not filtered.
    pub fn pin_filtered(&self, reason: &'static str) {
        let labels = self.with_reason(reason);
        self.pin.filtered.with_label_values(&labels).inc();
    }

    fn with_reason(&self, reason: &'static str) -> [&str; 5] {
        let [target, role, database, user] = &self.labels;
        [target, role, database, user, reason]
    }
}

/// One backend in `database_connections`.
pub struct BackendGauge {
    states: Arc<[[IntGauge; 2]; 4]>,
    picture: Picture,
    state: BackendState,
    tls: bool,
}

impl BackendGauge {
    fn current(&self) -> &IntGauge {
        &self.states[self.state as usize][usize::from(self.tls)]
    }

    /// It does something else now.
    pub fn set_state(&mut self, state: BackendState) {
        if state != self.state {
            let _moving = self.picture.moving();
            self.current().dec();
            self.state = state;
            self.current().inc();
        }
    }

    /// It is encrypted, or not.
    pub fn set_tls(&mut self, tls: bool) {
        let _moving = self.picture.moving();
        self.current().dec();
        self.tls = tls;
        self.current().inc();
    }
}

impl Drop for BackendGauge {
    fn drop(&mut self) {
        self.current().dec();
    }
}

/// A target's metrics.
#[derive(Clone)]
pub struct TargetMetrics {
    allowed: IntGauge,
}

impl TargetMetrics {
    pub(super) fn new(families: &Families, name: &str) -> Self {
        families.pool.up.with_label_values(&[name, ROLE]);
        Self {
            allowed: families.pool.allowed.with_label_values(&[name, ROLE]),
        }
    }

    /// The most backends to it; zero: not known yet.
    pub fn set_allowed(&self, allowed: usize) {
        self.allowed.set(i64::try_from(allowed).unwrap_or(i64::MAX));
    }
}
