//! A client from its first byte to its last, in one page: handshake → auth → admission → welcome → session | cancel.

use super::auth::{AuthError, Login, authenticate};
use super::credentials::ClientSecrets;
use super::handshake::{Greeting, HandshakeError, greet};
use super::limits::{Admission, LimitReached, Limits};
use super::strangers::{Eviction, Place, Strangers};
use super::welcome::welcome;
use crate::backend::connection::Parameters;
use crate::backend::settings::Settings;
use crate::cancel::CancelRegistry;
use crate::config::Config;
use crate::drain::{DrainObserver, DrainWatch, Phase};
use crate::error::{ClientFacing, SqlState};
use crate::ids::ClientId;
use crate::metrics::{ClientGauge, EndpointMetrics, Metrics, SetupResult};
use crate::pool::{Pool, TargetPools};
use crate::scram::ScramError;
use crate::secrets::SecretStore;
use crate::session::listen::Listeners;
use crate::session::params::{LoginError, LoginParameters};
use crate::session::prepared::StatementStore;
use crate::session::roster::Roster;
use crate::session::{Pinning, Session, SessionStart};
use crate::tls::accept::Acceptor;
use crate::tls::{Socket, Stream};
use crate::wire::error_response::{ErrorMessage, Severity};
use crate::wire::startup::{CancelRequest, Startup};
use bytes::BytesMut;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

/// How long a refused client may take to read why.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(2);

/// What a client may say before it is welcomed; drivers say nothing.
const EARLY_LEN_MAX: usize = 8 * 1024;

/// What all clients share.
pub struct Front {
    /// The configuration.
    pub config: Arc<Config>,
    /// Certificates, if clients may use TLS.
    pub acceptor: Option<Acceptor>,
    /// Who may come in.
    pub secrets: Arc<SecretStore>,
    /// What they prove it against.
    pub client_secrets: ClientSecrets,
    /// How many may come in.
    pub limits: Arc<Limits>,
    /// How many may be on their way in.
    pub strangers: Arc<Strangers>,
    /// Where backends come from.
    pub target: Arc<TargetPools>,
    /// What the server tells at login.
    pub parameters: LoginParameters,
    /// Prepared statements, shared.
    pub statements: Arc<StatementStore>,
    /// Who listens for sessions without a backend.
    pub listeners: Arc<Listeners>,
    /// Cancel keys.
    pub cancels: Arc<CancelRegistry>,
    /// Live sessions.
    pub roster: Arc<Roster>,
    /// What pins, and what must not.
    pub pinning: Pinning,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Stopping.
    pub drain: DrainObserver,
}

/// A connection just accepted.
pub struct Newcomer {
    /// Its socket.
    pub socket: Socket,
    /// Its address; `None` for a Unix socket.
    pub address: Option<IpAddr>,
    /// The listener's name in logs and metrics.
    pub endpoint: Arc<str>,
    /// The listener's metrics.
    pub metrics: EndpointMetrics,
    /// Its place among those who have not logged in, and when it must leave it.
    pub place: (Place, Eviction),
}

/// A client whose login the proxy has accepted, before it has been welcomed.
struct Admitted {
    stream: Stream,
    buf: BytesMut,
    startup: Box<Startup>,
    _admission: Admission,
    _gauge: ClientGauge,
}

/// Where a connection has come from: for logs and metrics.
#[derive(Clone, Copy)]
struct Origin<'a> {
    endpoint: &'a str,
    address: Option<IpAddr>,
    metrics: &'a EndpointMetrics,
}

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => address.fmt(f),
            None => f.write_str("unix"),
        }
    }
}

impl Origin<'_> {
    /// A handshake came to nothing.
    async fn broken_off(self, error: HandshakeError) {
        self.metrics.setup(SetupResult::FailedProtocol);
        let endpoint = self.endpoint;
        match error {
            HandshakeError::Refused {
                mut stream,
                refusal,
            } => {
                tracing::info!(endpoint, from = %self, error = %refusal, "client refused");
                let message = ErrorMessage::from_client_facing(Severity::Fatal, &refusal);
                farewell(&mut stream, &message).await;
            }
            HandshakeError::Broken(error) => {
                tracing::debug!(endpoint, from = %self, %error, "handshake broken off");
            }
            // The client can't be told; the operator must be.
            error @ (HandshakeError::Tls(_) | HandshakeError::NoTls) => {
                tracing::info!(endpoint, from = %self, %error, "client refused");
            }
        }
    }

    /// A client did not wait for its welcome.
    fn left(self, startup: &Startup, when: &'static str) {
        self.metrics.setup(SetupResult::FailedProtocol);
        let (user, database) = (startup.user.as_str(), startup.database.as_str());
        tracing::info!(user, database, from = %self, "{when}");
    }

    async fn refuse(self, mut stream: Stream, startup: &Startup, refusal: &Refusal) {
        self.metrics.setup(refusal.result());
        tracing::info!(
            user = startup.user.as_str(), database = startup.database.as_str(),
            from = %self, error = %refusal, "client refused"
        );
        farewell(&mut stream, &refusal.message()).await;
    }
}

/// What became of a connection before its deadline.
enum Arrival {
    /// A client that may come in.
    Admitted(Admitted),
    /// A request to cancel what another one runs.
    Cancel(Stream, CancelRequest),
    /// Refused, or gone.
    Ended,
}

/// Why a client was not let in.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error(transparent)]
    Limit(#[from] LimitReached),
    #[error("{}", without_words(.0))]
    Login(#[from] LoginError),
    #[error("pgsluice is stopping")]
    Draining,
    #[error("login took longer than login_timeout")]
    TimedOut,
}

/// The server's words may quote what the client asked for, which is for the client alone.
fn without_words(error: &LoginError) -> String {
    match error {
        LoginError::Refused(error) => {
            format!("the server refused a parameter: SQLSTATE {}", error.code)
        }
        error => error.to_string(),
    }
}

impl Refusal {
    fn facing(&self) -> Option<&dyn ClientFacing> {
        match self {
            Refusal::Auth(error) => Some(error),
            Refusal::Limit(error) => Some(error),
            Refusal::Login(error) => Some(error),
            Refusal::Draining | Refusal::TimedOut => None,
        }
    }

    fn message(&self) -> ErrorMessage {
        let (code, message) = match (self.facing(), self) {
            (Some(error), _) => return ErrorMessage::from_client_facing(Severity::Fatal, error),
            // PostgreSQL's words.
            (_, Refusal::TimedOut) => (
                SqlState::QUERY_CANCELED,
                "canceling authentication due to timeout",
            ),
            _ => (SqlState::CANNOT_CONNECT_NOW, "pgsluice is shutting down"),
        };
        ErrorMessage {
            severity: Severity::Fatal,
            code,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    fn result(&self) -> SetupResult {
        match self {
            Refusal::Auth(
                AuthError::WrongPassword(_)
                | AuthError::CleartextWithoutTls
                | AuthError::Scram(ScramError::BindingMismatch | ScramError::BindingNegotiation),
            ) => SetupResult::FailedAuth,
            Refusal::Auth(_) => SetupResult::FailedProtocol,
            Refusal::Limit(_) => SetupResult::FailedLimit,
            Refusal::Login(_) => SetupResult::FailedBackend,
            Refusal::Draining => SetupResult::FailedDraining,
            Refusal::TimedOut => SetupResult::FailedTimeout,
        }
    }
}

impl Front {
    /// Serves one connection until it is closed.
    pub async fn serve(self: Arc<Self>, newcomer: Newcomer) {
        let Newcomer {
            socket,
            address,
            endpoint,
            metrics,
            place: (place, mut eviction),
        } = newcomer;
        metrics.received();
        let origin = Origin {
            endpoint: &endpoint,
            address,
            metrics: &metrics,
        };
        // The login's buffers and state are freed before the session begins.
        let login = Box::pin(self.log_in(socket, origin, &place));
        let arrival = tokio::select! {
            arrival = login => arrival,
            () = eviction.comes() => {
                metrics.setup(SetupResult::FailedLimit);
                tracing::info!(
                    %endpoint, from = %origin,
                    "closed before its login: too many are in progress, and it was silent longest"
                );
                return;
            }
        };
        drop(place);
        let admitted = match arrival {
            Arrival::Admitted(admitted) => admitted,
            Arrival::Cancel(stream, request) => {
                return Box::pin(self.cancel(stream, request)).await;
            }
            Arrival::Ended => return,
        };
        let started = Box::pin(self.start(admitted, origin)).await;
        let Some((session, client, held)) = started else {
            return;
        };
        let reason = session.run().await;
        metrics.closed(reason.label());
        tracing::info!(%client, reason = reason.label(), "client closed");
        drop(held);
    }

    /// Handshake, authentication, admission, under one deadline.
    async fn log_in(&self, socket: Socket, origin: Origin<'_>, place: &Place) -> Arrival {
        let deadline = Instant::now() + self.config.listen.login_timeout;
        let require_tls = self.config.listen.require_tls;
        // Each step's memory is its own: a stranger who says nothing holds that of the first alone.
        let greeting = Box::pin(greet(socket, self.acceptor.as_ref(), require_tls));
        let (mut stream, mut buf, startup) = match timeout_at(deadline, greeting).await {
            Ok(Ok(Greeting::Startup {
                stream,
                buf,
                startup,
                ..
            })) => (stream, buf, startup),
            Ok(Ok(Greeting::Cancel { stream, request })) => {
                return Arrival::Cancel(stream, request);
            }
            Ok(Ok(Greeting::Gone)) => return Arrival::Ended,
            Ok(Err(error)) => {
                Box::pin(origin.broken_off(error)).await;
                return Arrival::Ended;
            }
            // As PostgreSQL: who has not even said what it wants is told nothing.
            Err(_) => {
                origin.metrics.setup(SetupResult::FailedTimeout);
                tracing::info!(
                    endpoint = origin.endpoint, from = %origin,
                    "closed before its login: no startup packet within login_timeout"
                );
                return Arrival::Ended;
            }
        };
        place.heard();
        let admitting = Box::pin(self.admit(&mut stream, &mut buf, &startup, origin.address));
        let admission = timeout_at(deadline, admitting)
            .await
            .unwrap_or(Err(Refusal::TimedOut));
        match admission {
            Ok(admission) => {
                let gauge = origin.metrics.connected(stream.is_tls());
                Arrival::Admitted(Admitted {
                    stream,
                    buf,
                    startup,
                    _admission: admission,
                    _gauge: gauge,
                })
            }
            Err(Refusal::Auth(error)) if !error.can_be_answered() => {
                origin.metrics.setup(SetupResult::FailedProtocol);
                tracing::debug!(endpoint = origin.endpoint, from = %origin, %error, "login broken off");
                Arrival::Ended
            }
            Err(refusal) => {
                Box::pin(origin.refuse(stream, &startup, &refusal)).await;
                Arrival::Ended
            }
        }
    }

    /// Carries out a cancel request, and only then closes the connection that brought it: libpq and pgJDBC wait for
    /// that, as PostgreSQL does it after the signal was sent (`processCancelRequest`). Its deadline is the registry's.
    async fn cancel(&self, mut stream: Stream, request: CancelRequest) {
        let client = ClientId(request.pid);
        let outcome = self.cancels.cancel(client, &request.secret).await;
        tracing::debug!(%client, ?outcome, "cancel request");
        // Inside TLS a goodbye is due, or its end looks like an error.
        let _ = timeout(REFUSAL_DEADLINE, stream.shutdown()).await;
    }

    async fn admit(
        &self,
        stream: &mut Stream,
        buf: &mut BytesMut,
        startup: &Startup,
        address: Option<IpAddr>,
    ) -> Result<Admission, Refusal> {
        let (user, database) = (startup.user.as_str(), startup.database.as_str());
        let secret = self.secrets.find(user, database);
        let login = Login {
            user: &startup.user,
            method: self.config.auth.method,
            trusted: self.config.auth.trust.iter().any(|name| name == user),
            password: secret.as_ref().map(|secret| &secret.password),
            secrets: &self.client_secrets,
            acceptor: self.acceptor.as_ref(),
        };
        authenticate(stream, buf, login).await?;
        if self.drain.phase() > Phase::Running {
            return Err(Refusal::Draining);
        }
        Ok(self.limits.admit(user, database, address)?)
    }

    /// What the server tells a client with these settings; `None` if the client has left meanwhile.
    async fn ask(
        &self,
        pool: &Arc<Pool>,
        settings: &Settings,
        watch: &mut DrainWatch,
        (stream, buf): (&mut Stream, &mut BytesMut),
    ) -> Result<Option<Parameters>, Refusal> {
        let patience = self.config.pool.connection_borrow_timeout;
        tokio::select! {
            biased;
            asked = self.parameters.ask(pool, settings, patience) => Ok(Some(asked?)),
            () = watch.reached(Phase::Draining) => Err(Refusal::Draining),
            () = closed(stream, buf) => Ok(None),
        }
    }

    /// The client has taken the message that ends its login.
    async fn welcomed(&self, stream: &mut Stream, message: &[u8]) -> bool {
        let sent = timeout(self.config.listen.login_timeout, send(stream, message));
        matches!(sent.await, Ok(Ok(())))
    }

    /// Finds out what the server tells such a client, welcomes it, and makes the session.
    async fn start(
        &self,
        admitted: Admitted,
        origin: Origin<'_>,
    ) -> Option<(Session, ClientId, (Admission, ClientGauge))> {
        let Admitted {
            mut stream,
            mut buf,
            startup,
            _admission,
            _gauge,
        } = admitted;
        let (user, database) = (startup.user.as_str(), startup.database.as_str());
        let endpoint = origin.endpoint;
        let rule = self.config.pool_settings(database, user);
        let cap = rule.max_connections.map(|cap| cap as usize);
        let pool = self.target.pool(&startup.database, &startup.user, cap);
        let settings = Settings::from_pairs(startup.parameters.iter().cloned());
        // Taken before the wait for a backend: the drain waits for such a client, too.
        let mut watch = self.drain.watch()?;
        let asked = self.ask(&pool, &settings, &mut watch, (&mut stream, &mut buf));
        let parameters = match asked.await {
            Ok(Some(parameters)) => parameters,
            Ok(None) => {
                origin.left(
                    &startup,
                    "client left while it waited for a database connection",
                );
                return None;
            }
            Err(refusal) => {
                origin.refuse(stream, &startup, &refusal).await;
                return None;
            }
        };
        let long_keys = startup.version.has_long_cancel_keys();
        let (key, cancel) = self.cancels.register(long_keys);
        if !self
            .welcomed(&mut stream, &welcome(&parameters, &key))
            .await
        {
            origin.left(&startup, "client left before it was welcomed");
            return None;
        }
        origin.metrics.setup(SetupResult::Succeeded);
        let client = key.client;
        tracing::info!(
            %client, user, database, endpoint, from = %origin, tls = stream.is_tls(),
            "client logged in"
        );
        let session = Session::new(SessionStart {
            metrics: self
                .metrics
                .session(endpoint, database, user, stream.is_tls()),
            stream,
            unread: buf,
            settings,
            statements: self.statements.clone(),
            listeners: self.listeners.clone(),
            pool,
            mode: rule.mode,
            pinning: self.pinning.clone(),
            patience: self.config.pool.connection_borrow_timeout,
            cancel,
            entry: self.roster.enter(client),
            client,
            watch,
        });
        Some((session, client, (_admission, _gauge)))
    }
}

async fn send(stream: &mut Stream, message: &[u8]) -> io::Result<()> {
    stream.write_all(message).await?;
    stream.flush().await
}

/// Waits until a client that has nothing to say yet has closed its end. What it says all the same is kept, up to a bound
/// beyond which nobody looks any more. Cancel-safe.
async fn closed(stream: &mut Stream, buf: &mut BytesMut) {
    while buf.len() < EARLY_LEN_MAX {
        match stream.read_buf(buf).await {
            Ok(len) if len > 0 => {}
            _ => return,
        }
    }
    std::future::pending().await
}

/// Tells a client why, and closes. It may not be reading: not for long.
async fn farewell(stream: &mut Stream, message: &ErrorMessage) {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes);
    let sending = async {
        stream.write_all(&bytes).await?;
        stream.shutdown().await
    };
    let _ = timeout(REFUSAL_DEADLINE, sending).await;
}

#[cfg(test)]
mod tests;
