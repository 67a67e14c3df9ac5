//! The composition root: a configuration becomes wired parts and running tasks. The only file that names every module.

use crate::admin::http::{self, Readiness};
use crate::backend::connect::Server;
use crate::cancel::CancelRegistry;
use crate::client::credentials::ClientSecrets;
use crate::client::limits::Limits;
use crate::client::listener::{ListenError, Listener};
use crate::client::serve::Front;
use crate::client::strangers::Strangers;
use crate::config::{AuthMethod, Config};
use crate::drain::{Drain, Phase};
use crate::ids::Role;
use crate::metrics::Metrics;
use crate::pool::TargetPools;
use crate::secrets::{SecretStore, SecretsError};
use crate::session::Pinning;
use crate::session::params::LoginParameters;
use crate::session::pin::PinReasons;
use crate::session::roster::{Roster, Timeouts};
use crate::signals::StopSignals;
use crate::tls::TlsFilesError;
use crate::tls::accept::Acceptor;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

/// After the deadline of the drain, or a second signal: how long the last goodbyes may take.
const ABORT_DEADLINE: Duration = Duration::from_secs(2);

/// Descriptors beside one a client and one a backend: listeners, files, cancels, spare.
const DESCRIPTORS_SPARE: u64 = 200;

/// Why the proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A secrets file that can't be used.
    #[error("secrets.file: {0}")]
    Secrets(#[from] SecretsError),
    /// Certificates that can't be used.
    #[error("{section}: {source}")]
    Tls {
        /// The section of the configuration that names them.
        section: &'static str,
        /// What is wrong.
        source: Box<TlsFilesError>,
    },
    /// Neither the configuration nor the secrets say where the server is.
    #[error(
        "target.host: not set, and no secret names a host; set it, or add \"host\" to the secrets file"
    )]
    NoHost,
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The admin endpoint, or signals.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

impl StartError {
    /// The configuration is at fault (exit code 64), not the system.
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            StartError::Secrets(_) | StartError::Tls { .. } | StartError::NoHost
        )
    }
}

/// Runs the proxy until it is told to stop.
pub async fn run(config: Config, secrets: SecretStore) -> Result<(), StartError> {
    let config = Arc::new(config);
    raise_descriptor_limit(&config);
    let system = |what: String| move |source| StartError::System { what, source };
    let mut signals = StopSignals::listen().map_err(system("signals".into()))?;
    let metrics = Metrics::new();
    let drain = Drain::new();
    let front = wire(&config, Arc::new(secrets), &metrics, &drain)?;
    let listeners = Listener::open_all(&config.listen, |name| metrics.endpoint(name))?;
    let (ready, readiness) = watch::channel(Readiness::Starting);
    if let Some(address) = config.admin.address {
        let what = format!("admin.address {address}");
        let listener = TcpListener::bind(address).await.map_err(system(what))?;
        let window = http::Window {
            metrics,
            pins: front.pinning.book.clone(),
            readiness,
        };
        tokio::spawn(http::serve(listener, window));
    }
    tokio::select! {
        () = prepare(&front) => {}
        _ = signals.next() => return Ok(()),
    }
    tokio::spawn(front.roster.clone().look_after(drain.observer()));
    tokio::spawn(front.target.clone().look_after());
    for listener in listeners {
        tracing::info!(endpoint = listener.name(), "listening");
        tokio::spawn(listener.run(front.clone()));
    }
    ready.send_replace(Readiness::Ready);
    let signal = signals.next().await;
    tracing::info!(
        signal,
        "stopping: transactions may finish; the same signal again ends them"
    );
    ready.send_replace(Readiness::Draining);
    let target = front.target.clone();
    drop(front);
    stop(drain, &target, &mut signals, config.run.drain_timeout).await;
    Ok(())
}

fn wire(
    config: &Arc<Config>,
    secrets: Arc<SecretStore>,
    metrics: &Arc<Metrics>,
    drain: &Drain,
) -> Result<Arc<Front>, StartError> {
    let (host, port) = match &config.target.host {
        Some(host) => (host.clone(), config.target.port),
        None => secrets.server()?.ok_or(StartError::NoHost)?,
    };
    let tls = |section| {
        move |error| StartError::Tls {
            section,
            source: Box::new(error),
        }
    };
    let server = Server::from_config(&config.target, &host, port).map_err(tls("target"))?;
    let server = Arc::new(server);
    let acceptor = config.listen.tls.as_ref().map(Acceptor::load).transpose();
    let acceptor = acceptor.map_err(tls("listen"))?;
    let target = TargetPools::new(
        config,
        server,
        secrets.clone(),
        metrics.clone(),
        drain.observer(),
    );
    Ok(Arc::new(Front {
        acceptor,
        client_secrets: ClientSecrets::default(),
        limits: Limits::new(config.limits.clone()),
        strangers: Strangers::new(&config.limits),
        target,
        parameters: LoginParameters::default(),
        statements: Arc::default(),
        listeners: Arc::default(),
        cancels: Arc::new(CancelRegistry::default()),
        roster: Roster::new(Timeouts {
            idle: config.pool.idle_client_timeout,
            in_transaction: config.pool.idle_in_transaction_timeout,
            query: config.pool.query_timeout,
        }),
        pinning: pinning(config),
        metrics: metrics.clone(),
        drain: drain.observer(),
        secrets,
        config: config.clone(),
    }))
}

/// Whoever filters reasons is told what that means, once.
fn pinning(config: &Config) -> Pinning {
    let labels = &config.pool.session_pinning_filters;
    if !labels.is_empty() {
        tracing::warn!(
            reasons = labels.join(","),
            "pool.session_pinning_filters: sessions lose what they leave behind for these reasons at the end of each \
             transaction"
        );
    }
    Pinning {
        filters: PinReasons::of_labels(labels),
        book: Arc::default(),
    }
}

/// The first login of a role must not take longer than one of a role nobody knows: what is derived from passwords is
/// derived before anybody is let in. Clients who come meanwhile wait in the system's queue.
async fn prepare(front: &Front) {
    if front.config.auth.method != AuthMethod::ScramSha256 {
        return;
    }
    let since = Instant::now();
    let secrets = front.secrets.iter().map(|secret| {
        let role = Role::new(secret.username.as_str());
        (role, secret.password.clone())
    });
    let secrets = front.client_secrets.prepare(secrets).await;
    let milliseconds = since.elapsed().as_millis();
    tracing::info!(secrets, milliseconds, "SCRAM keys derived");
}

/// No new clients; sessions end as their transactions do; what is left at the deadline, or at a second signal, ends.
async fn stop(
    mut drain: Drain,
    target: &Arc<TargetPools>,
    signals: &mut StopSignals,
    deadline: Duration,
) {
    drain.advance(Phase::Draining);
    target.close_idle();
    let in_order = tokio::select! {
        in_order = drain.wait(deadline) => in_order,
        signal = signals.next() => {
            tracing::warn!(signal, "stopping now");
            false
        }
    };
    if in_order {
        tracing::info!("stopped: every session has ended");
        return;
    }
    drain.advance(Phase::Aborting);
    drain.wait(ABORT_DEADLINE).await;
    tracing::warn!("stopped: sessions were ended before their transactions");
}

/// One descriptor a client, one a backend: as many as the system allows.
fn raise_descriptor_limit(config: &Config) {
    // Strangers make room where there are no descriptors left.
    let needed = u64::from(config.limits.max_clients) + DESCRIPTORS_SPARE;
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) if limit < needed => tracing::warn!(
            limit,
            needed,
            "fewer open files allowed than limits.max_clients needs; raise the limit (ulimit -n)"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit of open files could not be raised"),
    }
}
