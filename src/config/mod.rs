//! What the operator's configuration means: validated, defaults filled in. Every other module reads this type;
//! only `config/` knows how it was written (TOML, environment).

mod env;
mod faults;
mod file;
mod validate;
mod values;

pub use env::process as process_environment;
pub use faults::{ConfigFault, ConfigFaults};
#[cfg(test)]
pub(crate) use validate::PINNING_FILTERS;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The whole configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where clients connect.
    pub listen: Listen,
    /// How clients prove who they are.
    pub auth: Auth,
    /// The PostgreSQL server.
    pub target: Target,
    /// Backends and sessions.
    pub pool: Pool,
    /// Exceptions by database and user; the first rule that matches counts.
    pub pool_rules: Vec<PoolRule>,
    /// How many clients at once.
    pub limits: Limits,
    /// Where credentials come from.
    pub secrets: Secrets,
    /// The operator's HTTP endpoint.
    pub admin: Admin,
    /// Log format and level.
    pub log: Log,
    /// Threads and stopping.
    pub run: Run,
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq)]
pub struct Listen {
    /// TCP addresses.
    pub addresses: Vec<SocketAddr>,
    /// Folder for the Unix socket `.s.PGSQL.<port of the first address>`.
    pub unix_socket_dir: Option<PathBuf>,
    /// Permission bits of the Unix socket.
    pub unix_socket_mode: u32,
    /// Certificate chain and key offered to clients.
    pub tls: Option<ServerTls>,
    /// Refuse plaintext TCP clients (a Unix socket is never refused for this).
    pub require_tls: bool,
    /// How long a client may take from connect to the proof of who it is.
    pub login_timeout: Duration,
    /// TCP keepalive idle time; zero turns keepalive off.
    pub keepalive: Duration,
}

/// Certificate files for the client side, PEM.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerTls {
    /// The chain, leaf first.
    pub certificate_file: PathBuf,
    /// The private key.
    pub private_key_file: PathBuf,
}

/// How clients prove who they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Auth {
    /// What is asked of every role not named in `trust`.
    pub method: AuthMethod,
    /// Roles let in without a password.
    pub trust: Vec<String>,
}

/// An authentication method towards clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    /// SCRAM-SHA-256, and -PLUS where TLS allows channel binding.
    ScramSha256,
    /// Salted MD5, for old drivers.
    Md5,
    /// The password as it is; refused without TLS.
    Cleartext,
}

/// A PostgreSQL server.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// What logs and metrics call it.
    pub name: String,
    /// Host name, address, or a folder (starting with `/`) holding its Unix socket.
    /// `None`: host and port are those the secrets file names.
    pub host: Option<String>,
    /// Port.
    pub port: u16,
    /// TLS towards it.
    pub tls: TargetTls,
    /// From the first packet to ReadyForQuery.
    pub connect_timeout: Duration,
    /// TCP keepalive idle time; zero turns keepalive off.
    pub keepalive: Duration,
}

/// TLS towards a target, as libpq names it.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetTls {
    /// How much is asked of the server.
    pub mode: SslMode,
    /// Certificate authorities, PEM; needed by verify-ca and verify-full.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate and key, if the server asks for one.
    pub client: Option<ServerTls>,
}

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS if the server has it; the certificate is not checked.
    Prefer,
    /// TLS or nothing; the certificate is not checked.
    Require,
    /// TLS, and the certificate leads to `ca_file`.
    VerifyCa,
    /// verify-ca, and the certificate names the host.
    VerifyFull,
}

/// Defaults for every pool and session.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// When a session gives its backend back.
    pub mode: PoolMode,
    /// The cap on backends of the target, all pools together.
    pub max_connections: MaxConnections,
    /// Idle backends kept, percent of the cap.
    pub max_idle_connections_percent: u8,
    /// How long a client waits for a backend.
    pub connection_borrow_timeout: Duration,
    /// How long a session may idle outside a transaction.
    pub idle_client_timeout: Duration,
    /// How long a session may idle inside a transaction; zero: as long as the server allows.
    pub idle_in_transaction_timeout: Duration,
    /// How long a statement may run before it is cancelled; zero: as long as the server allows.
    pub query_timeout: Duration,
    /// A backend is replaced after this, less up to 10 % of jitter.
    pub max_connection_lifetime: Duration,
    /// Protocol-level prepared statements kept on a backend; 0: none is shared, each pins.
    pub max_prepared_statements: u32,
    /// Reasons that must not pin, by the names logs and metrics give them.
    pub session_pinning_filters: Vec<&'static str>,
    /// SQL run once on every new backend; several statements separated by `;`.
    pub init_query: Option<String>,
}

/// The cap on backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxConnections {
    /// Percent of what the server allows (its `max_connections` less the reserved ones).
    Percent(u8),
    /// A number.
    Count(u32),
}

/// When a session gives its backend back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// At the end of every transaction.
    Transaction,
    /// When the client leaves.
    Session,
    /// After every statement; transaction blocks are refused.
    Statement,
}

/// An exception by database and user.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolRule {
    /// Only this database.
    pub database: Option<String>,
    /// Only this user.
    pub user: Option<String>,
    /// Another mode.
    pub mode: Option<PoolMode>,
    /// A cap for this pool alone, within the target's.
    pub max_connections: Option<u32>,
}

/// How many clients at once; `None` is no limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// In all.
    pub max_clients: u32,
    /// With the same user.
    pub max_clients_per_user: Option<u32>,
    /// On the same database.
    pub max_clients_per_database: Option<u32>,
    /// From the same address (TCP only).
    pub max_clients_per_address: Option<u32>,
    /// Connections that have not logged in yet; beyond it the longest silent one is closed.
    pub max_logins_in_progress: u32,
    /// The same from one address (TCP only).
    pub max_logins_in_progress_per_address: Option<u32>,
}

/// Where credentials come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Secrets {
    /// The secrets file: JSON, one object or a list.
    pub file: PathBuf,
}

/// The operator's HTTP endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    /// Where `/metrics`, `/healthz` and `/readyz` listen; `None` turns it off.
    pub address: Option<SocketAddr>,
}

/// Logging.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// A level (`info`) or a tracing filter (`info,pgsluice::pool=debug`).
    pub level: String,
    /// Text or JSON.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Threads and stopping.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Worker threads; zero: one a core.
    pub worker_threads: usize,
    /// How long transactions may take to finish after SIGTERM.
    pub drain_timeout: Duration,
}

/// Reads file and environment; on failure every fault of both. [`process_environment`] is what `main` passes.
pub fn load(
    path: &Path,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Config, ConfigFaults> {
    let (config, faults) = inspect(path, environment)?;
    ConfigFaults::new(faults).map_or(Ok(config), Err)
}

/// As [`load`], for who looks for more faults: with faults, the configuration has defaults in their places and is
/// good for nothing else. An error if the file could not be read at all.
pub fn inspect(
    path: &Path,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<(Config, Vec<ConfigFault>), ConfigFaults> {
    let table = file::read(path)?;
    let (overrides, misnamed) = env::collect(environment);
    let context = file::Context::new(path, misnamed);
    let config = validate::config(file::Document::new(&context, table, overrides));
    Ok((config, context.into_faults()))
}

/// What holds for one pool: the defaults with the first matching rule applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// When a session gives its backend back.
    pub mode: PoolMode,
    /// A cap for this pool alone.
    pub max_connections: Option<u32>,
}

impl Config {
    /// What holds for one database and user.
    pub fn pool_settings(&self, database: &str, user: &str) -> PoolSettings {
        let rule = self.pool_rules.iter().find(|rule| {
            rule.database.as_deref().is_none_or(|name| name == database)
                && rule.user.as_deref().is_none_or(|name| name == user)
        });
        PoolSettings {
            mode: rule.and_then(|rule| rule.mode).unwrap_or(self.pool.mode),
            max_connections: rule.and_then(|rule| rule.max_connections),
        }
    }
}
