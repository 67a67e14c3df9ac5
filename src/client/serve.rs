//! A client from its first byte to its last, in one page: handshake → auth → admission → welcome → session | cancel.

use super::auth::{AuthError, ClientSecrets, Login, authenticate};
use super::handshake::{Greeting, HandshakeError, greet};
use super::limits::{Admission, LimitReached, Limits};
use super::welcome::welcome;
use crate::backend::settings::Settings;
use crate::cancel::CancelRegistry;
use crate::config::Config;
use crate::drain::{DrainWatch, Phase};
use crate::error::{ClientFacing, Fault, SqlState};
use crate::ids::ClientId;
use crate::metrics::{ClientGauge, EndpointMetrics, Metrics, SetupResult};
use crate::pool::TargetPools;
use crate::secrets::SecretStore;
use crate::session::params::{LoginError, LoginParameters};
use crate::session::roster::Roster;
use crate::session::{Session, SessionStart};
use crate::tls::accept::Acceptor;
use crate::tls::{Socket, Stream};
use crate::wire::error_response::{ErrorMessage, Severity};
use crate::wire::startup::Startup;
use bytes::BytesMut;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// How long a refused client may take to read why.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(2);

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
    /// Where backends come from.
    pub target: Arc<TargetPools>,
    /// What the server tells at login.
    pub parameters: LoginParameters,
    /// Cancel keys.
    pub cancels: Arc<CancelRegistry>,
    /// Live sessions.
    pub roster: Arc<Roster>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Stopping.
    pub drain: DrainWatch,
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
}

/// A client whose login the proxy has accepted, before it has been welcomed.
struct Admitted {
    stream: Stream,
    buf: BytesMut,
    startup: Startup,
    _admission: Admission,
    _gauge: ClientGauge,
}

/// Why a client was not let in.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error(transparent)]
    Limit(#[from] LimitReached),
    #[error(transparent)]
    Login(#[from] LoginError),
    #[error("pgsluice is stopping")]
    Draining,
}

impl Refusal {
    fn facing(&self) -> Option<&dyn ClientFacing> {
        match self {
            Refusal::Auth(error) => Some(error),
            Refusal::Limit(error) => Some(error),
            Refusal::Login(error) => Some(error),
            Refusal::Draining => None,
        }
    }

    fn message(&self) -> ErrorMessage {
        match self.facing() {
            Some(error) => ErrorMessage::from_client_facing(Severity::Fatal, error),
            None => ErrorMessage {
                severity: Severity::Fatal,
                code: SqlState::CANNOT_CONNECT_NOW,
                message: "pgsluice is shutting down".into(),
                detail: None,
                hint: None,
            },
        }
    }

    fn result(&self) -> SetupResult {
        match self {
            Refusal::Auth(error) if error.fault() == Fault::Client => SetupResult::FailedAuth,
            Refusal::Auth(_) => SetupResult::FailedProtocol,
            Refusal::Limit(_) => SetupResult::FailedLimit,
            Refusal::Login(_) => SetupResult::FailedBackend,
            Refusal::Draining => SetupResult::FailedDraining,
        }
    }
}

impl Front {
    /// Serves one connection until it is closed.
    pub async fn serve(self: Arc<Self>, newcomer: Newcomer) {
        newcomer.metrics.received();
        let (metrics, endpoint) = (newcomer.metrics.clone(), newcomer.endpoint.clone());
        let address = newcomer.address;
        // The login's buffers and state are freed before the session begins.
        let login = Box::pin(self.clone().log_in(newcomer));
        let deadline = self.config.listen.login_timeout;
        let admitted = match tokio::time::timeout(deadline, login).await {
            Ok(Some(admitted)) => admitted,
            Ok(None) => return,
            Err(_) => {
                metrics.setup(SetupResult::FailedTimeout);
                tracing::info!(%endpoint, from = %From_(address), "login took longer than login_timeout");
                return;
            }
        };
        let started = Box::pin(self.clone().start(admitted, &endpoint, &metrics, address)).await;
        let Some((session, client, held)) = started else { return };
        let reason = session.run().await;
        metrics.closed(reason.label());
        tracing::info!(%client, reason = reason.label(), "client closed");
        drop(held);
    }

    /// Handshake, authentication, admission. `None` if that was the end of it.
    async fn log_in(self: Arc<Self>, newcomer: Newcomer) -> Option<Admitted> {
        let Newcomer { socket, address, endpoint, metrics } = newcomer;
        let greeting = greet(socket, self.acceptor.as_ref(), self.config.listen.require_tls).await;
        let (mut stream, mut buf, startup) = match greeting {
            Ok(Greeting::Startup { stream, buf, startup }) => (stream, buf, startup),
            Ok(Greeting::Cancel { pid, secret }) => {
                let outcome = self.cancels.cancel(ClientId(pid), &secret).await;
                tracing::debug!(client = %ClientId(pid), ?outcome, "cancel request");
                return None;
            }
            Ok(Greeting::Gone) => return None,
            Err(HandshakeError::Refused { mut stream, error }) => {
                metrics.setup(SetupResult::FailedProtocol);
                let text = error.client_message();
                tracing::info!(%endpoint, from = %From_(address), error = %text, "client refused");
                farewell(&mut stream, &ErrorMessage::from_client_facing(Severity::Fatal, &error))
                    .await;
                return None;
            }
            Err(HandshakeError::Broken(error)) => {
                metrics.setup(SetupResult::FailedProtocol);
                tracing::debug!(%endpoint, from = %From_(address), %error, "handshake broken off");
                return None;
            }
        };
        match self.admit(&mut stream, &mut buf, &startup, address).await {
            Ok(admission) => {
                let gauge = metrics.connected(stream.is_tls());
                Some(Admitted { stream, buf, startup, _admission: admission, _gauge: gauge })
            }
            Err(refusal) => {
                refuse(stream, &startup, &refusal, &metrics, address).await;
                None
            }
        }
    }

    async fn admit(
        &self,
        stream: &mut Stream,
        buf: &mut BytesMut,
        startup: &Startup,
        address: Option<IpAddr>,
    ) -> Result<Admission, Refusal> {
        let (user, database) = (startup.user.as_str(), startup.database.as_str());
        let secret = match self.secrets.find(user, database) {
            Some(secret) => Some(self.client_secrets.of(&secret).await),
            None => None,
        };
        let login = Login {
            user: &startup.user,
            method: self.config.auth.method,
            trusted: self.config.auth.trust.iter().any(|name| name == user),
            secret: secret.as_deref(),
            acceptor: self.acceptor.as_ref(),
        };
        authenticate(stream, buf, login).await?;
        if self.drain.phase() > Phase::Running {
            return Err(Refusal::Draining);
        }
        Ok(self.limits.admit(user, database, address)?)
    }

    /// Finds out what the server tells such a client, welcomes it, and makes the session.
    async fn start(
        self: Arc<Self>,
        admitted: Admitted,
        endpoint: &str,
        metrics: &EndpointMetrics,
        address: Option<IpAddr>,
    ) -> Option<(Session, ClientId, impl Drop + use<>)> {
        let Admitted { mut stream, buf, startup, _admission, _gauge } = admitted;
        let (user, database) = (startup.user.as_str(), startup.database.as_str());
        let rule = self.config.pool_settings(database, user);
        let cap = rule.max_connections.map(|cap| cap as usize);
        let pool = self.target.pool(&startup.database, &startup.user, cap);
        let settings = Settings::from_pairs(startup.parameters.iter().cloned());
        let patience = self.config.pool.connection_borrow_timeout;
        let parameters = match self.parameters.ask(&pool, &settings, patience).await {
            Ok(parameters) => parameters,
            Err(error) => {
                refuse(stream, &startup, &Refusal::Login(error), metrics, address).await;
                return None;
            }
        };
        let (key, cancel) = self.cancels.register(startup.version.minor >= 2);
        if stream.write_all(&welcome(&parameters, &key)).await.is_err()
            || stream.flush().await.is_err()
        {
            return None;
        }
        metrics.setup(SetupResult::Succeeded);
        let client = key.client;
        tracing::info!(
            %client, user, database, endpoint, from = %From_(address), tls = stream.is_tls(),
            "client logged in"
        );
        let session = Session::new(SessionStart {
            metrics: self.metrics.session(endpoint, database, user, stream.is_tls()),
            stream,
            unread: buf,
            settings,
            pool,
            mode: rule.mode,
            patience,
            cancel,
            entry: self.roster.enter(client),
            client,
        });
        Some((session, client, Held(_admission, _gauge, self.drain.clone())))
    }
}

/// What a session's connection counts in, until it is closed.
struct Held(#[allow(dead_code)] Admission, #[allow(dead_code)] ClientGauge, #[allow(dead_code)] DrainWatch);

impl Drop for Held {
    fn drop(&mut self) {}
}

async fn refuse(
    mut stream: Stream,
    startup: &Startup,
    refusal: &Refusal,
    metrics: &EndpointMetrics,
    address: Option<IpAddr>,
) {
    metrics.setup(refusal.result());
    tracing::info!(
        user = startup.user.as_str(), database = startup.database.as_str(),
        from = %From_(address), error = %refusal, "client refused"
    );
    farewell(&mut stream, &refusal.message()).await;
}

/// Tells a client why, and closes. It may not be reading: not for long.
async fn farewell(stream: &mut Stream, message: &ErrorMessage) {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes);
    let sending = async {
        stream.write_all(&bytes).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(REFUSAL_DEADLINE, sending).await;
}

/// A client's address in a log line.
struct From_(Option<IpAddr>);

impl fmt::Display for From_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("unix"),
        }
    }
}
