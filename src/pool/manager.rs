//! deadpool's manager: makes backends and looks at them before they are lent again.

use super::gate::{Eviction, Gate, Member, Permit, Refusal};
use super::lease::DiscardReason;
use crate::backend::connect::{BackendLogin, ConnectError, Server, connect};
use crate::backend::connection::BackendConnection;
use crate::backend::exchange::{ExchangeError, simple_query};
use crate::config::MaxConnections;
use crate::drain::DrainObserver;
use crate::ids::PoolKey;
use crate::metrics::{BackendGauge, BackendState, PoolMetrics};
use crate::secrets::SecretStore;
use deadpool::managed::{Manager, Metrics, RecycleError, RecycleResult};
use rand::RngExt;
use std::pin::pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};

/// How long the process waits, when it stops, for a server to close its end.
const CLOSE_WATCHED: Duration = Duration::from_secs(30);

/// What a pool needs to make a backend.
pub(super) struct BackendManager {
    pub(super) key: PoolKey,
    pub(super) gate: Arc<Gate>,
    /// The pool, as the gate knows it.
    pub(super) member: Arc<Member>,
    pub(super) recipe: Arc<Recipe>,
    pub(super) metrics: Arc<PoolMetrics>,
}

/// What all pools of a target share.
pub(super) struct Recipe {
    pub(super) server: Arc<Server>,
    pub(super) secrets: Arc<SecretStore>,
    pub(super) init_query: Option<Arc<str>>,
    pub(super) prepared_statements_max: usize,
    pub(super) max_connections: MaxConnections,
    pub(super) max_lifetime: Duration,
    /// Told when the server has been asked how many connections it allows.
    pub(super) learned: watch::Sender<Option<usize>>,
    /// When it was asked last.
    pub(super) asked: Mutex<Option<Instant>>,
    pub(super) runtime: Handle,
    /// Backends that come back are closed.
    pub(super) stopping: AtomicBool,
    pub(super) drain: DrainObserver,
}

impl Recipe {
    /// True for the first who comes when the server should be asked again.
    fn asks_again(&self) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let due = asked.is_none_or(|asked| asked.elapsed() >= LEARN_EVERY);
        if due {
            *asked = Some(Instant::now());
        }
        due
    }
}

/// Why no backend was made.
#[derive(Debug, thiserror::Error)]
pub(super) enum CreateError {
    /// The bound is reached, or the server full.
    #[error("all database connections are in use")]
    NoPermit(Refusal),
    /// There is no secret for the role.
    #[error("no secret for role {0:?}")]
    NoSecret(crate::ids::Role),
    /// The server could not be reached, or refused.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// How many connections there may be is not known.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The task that connects has ended without a word: the runtime is shutting down.
    #[error("shutting down")]
    Stopping,
}

/// A backend as deadpool keeps it. Dropping it, wherever that happens, closes the connection in order.
pub(super) struct Pooled {
    conn: Option<Box<BackendConnection>>,
    gauge: Arc<Mutex<BackendGauge>>,
    expires: Instant,
    runtime: Handle,
    drain: DrainObserver,
    /// Why it will be closed, once that is known.
    pub(super) discard: DiscardReason,
    /// Held until it is gone, if it makes room for another pool.
    pub(super) evicted: Option<Eviction>,
}

fn set_state(gauge: &Mutex<BackendGauge>, state: BackendState) {
    gauge
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .set_state(state);
}

impl Pooled {
    pub(super) fn set_state(&self, state: BackendState) {
        set_state(&self.gauge, state);
    }

    pub(super) fn expired(&self) -> bool {
        Instant::now() >= self.expires
    }

    /// Something has arrived while it was idle: usually the server's last words. No system call.
    pub(super) fn has_news(&self) -> bool {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        self.conn
            .as_ref()
            .is_none_or(|conn| conn.stream.socket().poll_read_ready(&mut cx).is_ready())
    }

    pub(super) fn conn_mut(&mut self) -> &mut BackendConnection {
        #[allow(clippy::expect_used)] // taken out by drop only
        self.conn
            .as_mut()
            .expect("a pooled backend has its connection")
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let Some(conn) = self.conn.take() else { return };
        self.set_state(BackendState::Closing);
        tracing::info!(backend = %conn.id, reason = self.discard.label(), "backend closed");
        let held = (self.gauge.clone(), self.evicted.take());
        let watch = self.drain.watch();
        let busy = self.discard.may_be_running();
        self.runtime.spawn(async move {
            let mut closing = pin!(async {
                if busy {
                    conn.cancel_and_close().await
                } else {
                    conn.close().await
                }
            });
            // The watch keeps the process from ending before the server has seen the goodbye, but not for ever.
            if timeout(CLOSE_WATCHED, &mut closing).await.is_err() {
                drop(watch);
                closing.await;
            }
            drop(held);
        });
    }
}

impl Manager for BackendManager {
    type Type = Pooled;
    type Error = CreateError;

    /// Cancel-safe: if nobody waits for the connection any more when it is made, it is closed in order.
    async fn create(&self) -> Result<Pooled, CreateError> {
        let permit = self
            .gate
            .try_permit(&self.member)
            .map_err(CreateError::NoPermit)?;
        let (done, made) = oneshot::channel();
        let gauge = Arc::new(Mutex::new(self.metrics.connection()));
        let task = connect_pooled(self.key.clone(), self.recipe.clone(), permit, gauge);
        let (metrics, gate) = (self.metrics.clone(), self.gate.clone());
        let member = self.member.clone();
        self.recipe.runtime.spawn(async move {
            let result = task.await;
            match &result {
                Ok(_) => {
                    gate.server_accepts(&member);
                    metrics.setup(true, true)
                }
                Err(CreateError::Connect(error)) => {
                    if error.is_server_full() {
                        gate.server_is_full(&member);
                    }
                    metrics.setup(false, !error.means_unreachable())
                }
                Err(CreateError::Limit(_)) => metrics.setup(false, true),
                // The server was not asked.
                Err(_) => {}
            }
            // Nobody there: the value is dropped, which closes the connection.
            let _ = done.send(result);
        });
        made.await.unwrap_or(Err(CreateError::Stopping))
    }

    async fn recycle(&self, pooled: &mut Pooled, _: &Metrics) -> RecycleResult<CreateError> {
        // It is called for every backend that is taken out.
        self.member.idle_gone(1);
        if pooled.expired() {
            pooled.discard = DiscardReason::Lifetime;
            return Err(RecycleError::message("lifetime"));
        }
        if pooled.has_news() && !pooled.conn_mut().is_alive() {
            pooled.discard = DiscardReason::ServerClosed;
            return Err(RecycleError::message("closed by the server"));
        }
        Ok(())
    }
}

async fn connect_pooled(
    key: PoolKey,
    recipe: Arc<Recipe>,
    permit: Permit,
    gauge: Arc<Mutex<BackendGauge>>,
) -> Result<Pooled, CreateError> {
    let secret = recipe
        .secrets
        .find(key.role.as_str(), key.database.as_str())
        .ok_or_else(|| CreateError::NoSecret(key.role.clone()))?;
    let login = BackendLogin {
        database: &key.database,
        role: &key.role,
        password: &secret.password,
        init_query: recipe.init_query.clone(),
        prepared_statements_max: recipe.prepared_statements_max,
    };
    // The permit and the gauge live as long as the socket, also if the login fails.
    let hold = Box::new((permit, gauge.clone()));
    let mut conn = connect(&recipe.server, &login, hold)
        .await
        .inspect_err(|_| set_state(&gauge, BackendState::Closing))?;
    gauge
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .set_tls(conn.tls);
    if let Err(error) = learn_limit(&recipe, &mut conn).await {
        set_state(&gauge, BackendState::Closing);
        let held = (gauge, recipe.drain.watch());
        recipe.runtime.spawn(async move {
            conn.cancel_and_close().await;
            drop(held);
        });
        return Err(error.into());
    }
    tracing::info!(backend = %conn.id, pool = %key, tls = conn.tls, "backend connected");
    let jitter = rand::rng().random_range(0.9..=1.0);
    Ok(Pooled {
        conn: Some(Box::new(conn)),
        gauge,
        expires: Instant::now() + recipe.max_lifetime.mul_f64(jitter),
        runtime: recipe.runtime.clone(),
        drain: recipe.drain.clone(),
        discard: DiscardReason::Dropped,
        evicted: None,
    })
}

/// What an ordinary role may use of the server's connections (PostgreSQL documentation, "Connection Settings";
/// reserved_connections came with version 16).
const ALLOWED_SQL: &str = "SELECT current_setting('max_connections')::int \
    - current_setting('superuser_reserved_connections')::int \
    - coalesce(current_setting('reserved_connections', true), '0')::int";

const LEARN_DEADLINE: Duration = Duration::from_secs(5);

/// How old the answer may get: a restarted server may allow more, or fewer.
const LEARN_EVERY: Duration = Duration::from_secs(60);

/// Why the bound is not known.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// The server refused to tell, or broke off.
    #[error("the server did not tell its max_connections: {0}")]
    Query(#[from] ExchangeError),
    /// It answered something else.
    #[error("the server did not tell its max_connections: the answer is no number")]
    NoNumber,
}

/// Asks the server how many connections it allows, on the first backend made and again from time to time. After an
/// error the connection can't be lent: its reply may still be on the way, or nobody knows how many more there may be.
async fn learn_limit(recipe: &Recipe, conn: &mut BackendConnection) -> Result<(), LimitError> {
    let MaxConnections::Percent(percent) = recipe.max_connections else {
        return Ok(());
    };
    let known = recipe.learned.borrow().is_some();
    if known && !recipe.asks_again() {
        return Ok(());
    }
    let outcome = match simple_query(conn, ALLOWED_SQL, LEARN_DEADLINE).await {
        Err(error @ ExchangeError::Server(_)) if known => {
            tracing::warn!(%error, "the server did not tell its max_connections again");
            return Ok(());
        }
        answer => answer?,
    };
    let allowed: usize = outcome
        .first_value()
        .and_then(|value| value.parse().ok())
        .ok_or(LimitError::NoNumber)?;
    recipe.asks_again();
    let limit = (allowed * usize::from(percent) / 100).max(1);
    let changed = recipe
        .learned
        .send_if_modified(|learned| learned.replace(limit) != Some(limit));
    if changed {
        tracing::info!(
            allowed,
            percent,
            limit,
            "the server told its max_connections"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
