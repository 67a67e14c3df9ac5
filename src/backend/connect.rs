//! Makes a database connection: TCP or Unix socket → TLS → startup → authentication → parameters, under one deadline.

use super::auth::{authenticate, next_frame};
use super::cancel::CancelTarget;
use super::connection::{BackendConnection, HeldUntilGone, Parameters, close_stream};
use super::exchange::{ExchangeError, simple_query, status};
use super::prepared::{PreparedHere, SqlPreparedHere};
use super::settings::Settings;
use crate::config;
use crate::error::{ClientFacing, Fault, SqlState};
use crate::ids::{BackendId, Database, Role, TargetName};
use crate::redacted::Redacted;
use crate::scram::client::ScramError;
use crate::tls::connect::{Connector, UpgradeError};
use crate::tls::{Socket, Stream, TlsFilesError};
use crate::wire::frame::ReadError;
use crate::wire::from_backend::{ServerError, TxStatus, backend_key_data, parameter_status};
use crate::wire::to_backend;
use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Host name or address, and port.
    Tcp {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix domain socket.
    Unix(PathBuf),
}

impl Address {
    /// The name a certificate must bear.
    pub fn host(&self) -> &str {
        match self {
            Address::Tcp { host, .. } => host,
            Address::Unix(_) => "localhost",
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A PostgreSQL server and how to reach it.
#[derive(Debug)]
pub struct Server {
    /// What logs call it.
    pub name: TargetName,
    /// Where it listens.
    pub address: Address,
    /// How to encrypt.
    pub connector: Connector,
    /// TCP keepalive idle time; zero: none.
    pub keepalive: Duration,
    /// From the first packet to ReadyForQuery.
    pub connect_timeout: Duration,
    /// Numbers its backends.
    backends: AtomicU64,
}

impl Server {
    /// From the configuration; a host that begins with `/` is the folder of a Unix socket, as for libpq.
    pub fn from_config(
        config: &config::Target,
        host: &str,
        port: u16,
    ) -> Result<Self, TlsFilesError> {
        let address = if host.starts_with('/') {
            Address::Unix(PathBuf::from(host).join(format!(".s.PGSQL.{port}")))
        } else {
            Address::Tcp {
                host: host.to_owned(),
                port,
            }
        };
        Ok(Self {
            name: TargetName::new(config.name.as_str()),
            address,
            connector: Connector::load(&config.tls)?,
            keepalive: config.keepalive,
            connect_timeout: config.connect_timeout,
            backends: AtomicU64::new(0),
        })
    }
}

/// Who logs in, and what is run first.
pub struct BackendLogin<'a> {
    /// The database.
    pub database: &'a Database,
    /// The role.
    pub role: &'a Role,
    /// Its password.
    pub password: &'a Redacted<String>,
    /// SQL run once, before the backend is lent.
    pub init_query: Option<Arc<str>>,
    /// `max_prepared_statements`
    pub prepared_statements_max: usize,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server can't be reached, or the connection broke during the login.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// `target.connect_timeout` has passed.
    #[error("no answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// No encryption.
    #[error(transparent)]
    Tls(#[from] UpgradeError),
    /// It asks for what the proxy does not do.
    #[error("the server asks for {0} authentication, which pgsluice does not support")]
    AuthUnsupported(&'static str),
    /// The password would cross the network readable.
    #[error(
        "the server asks for the password in cleartext, which pgsluice sends only inside TLS or over a Unix socket; \
         set target.tls to \"require\" or more, or let the server ask for scram-sha-256"
    )]
    CleartextWithoutTls,
    /// SCRAM failed on our side: the server could not prove that it knows the password.
    #[error(transparent)]
    Scram(ScramError),
    /// The server refused the login.
    #[error(transparent)]
    Server(ServerError),
    /// `pool.init_query` failed.
    #[error("pool.init_query failed: {}", without_words(.0))]
    InitQuery(ExchangeError),
    /// It is not PostgreSQL, or broken.
    #[error("the server sent {0}")]
    Protocol(&'static str),
    /// Any of these, with the server's name: what the log and the client see.
    #[error("could not connect to target \"{target}\" ({address}): {source}")]
    At {
        /// The target.
        target: TargetName,
        /// Its address.
        address: Address,
        /// What went wrong.
        source: Box<ConnectError>,
    },
}

/// The server's words may quote what the operator wrote, which is nobody else's business.
fn without_words(error: &ExchangeError) -> String {
    match error {
        ExchangeError::Server(error) => format!("SQLSTATE {}", error.code),
        error => error.to_string(),
    }
}

impl From<ReadError> for ConnectError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => ConnectError::Io(error),
            ReadError::Closed => ConnectError::Io(io::ErrorKind::UnexpectedEof.into()),
            ReadError::BadLength(_) | ReadError::TooLong { .. } => {
                ConnectError::Protocol("a message of impossible length")
            }
        }
    }
}

impl ConnectError {
    /// Whether the server can serve nobody: it does not answer, or says so. One that refuses this login for another
    /// reason serves others.
    pub fn means_unreachable(&self) -> bool {
        let refused = |error: &ServerError| error.code == SqlState::CANNOT_CONNECT_NOW;
        match self {
            // What does not speak the protocol, or none of our ways to log in, is no server of ours.
            ConnectError::Io(_)
            | ConnectError::TimedOut(_)
            | ConnectError::Tls(_)
            | ConnectError::AuthUnsupported(_)
            | ConnectError::Protocol(_) => true,
            ConnectError::Server(error) => refused(error),
            ConnectError::InitQuery(ExchangeError::Server(error)) => refused(error),
            ConnectError::InitQuery(_) => true,
            ConnectError::Scram(_) | ConnectError::CleartextWithoutTls => false,
            ConnectError::At { source, .. } => source.means_unreachable(),
        }
    }

    /// The server has no connection free.
    pub fn is_server_full(&self) -> bool {
        match self {
            ConnectError::Server(error) => error.code == SqlState::TOO_MANY_CONNECTIONS,
            ConnectError::At { source, .. } => source.is_server_full(),
            _ => false,
        }
    }

    fn at(self, server: &Server) -> Self {
        match self {
            // The server's own words need no frame.
            ConnectError::Server(_) => self,
            other => ConnectError::At {
                target: server.name.clone(),
                address: server.address.clone(),
                source: Box::new(other),
            },
        }
    }
}

impl ClientFacing for ConnectError {
    fn fault(&self) -> Fault {
        match self {
            ConnectError::InitQuery(_) => Fault::Configuration,
            ConnectError::At { source, .. } => source.fault(),
            _ => Fault::Backend,
        }
    }

    fn sqlstate(&self) -> SqlState {
        match self {
            ConnectError::Server(error) | ConnectError::InitQuery(ExchangeError::Server(error)) => {
                error.code
            }
            ConnectError::At { source, .. } => source.sqlstate(),
            _ => SqlState::CONNECTION_FAILURE,
        }
    }

    fn client_message(&self) -> String {
        match self {
            ConnectError::Server(error) => error.message.clone(),
            other => format!("pgsluice {other}"),
        }
    }
}

/// Makes a connection and logs in. `held` is dropped only when the server's connection is gone: with the returned
/// connection, or, if the login fails, when the socket has been closed by both sides.
pub async fn connect(
    server: &Arc<Server>,
    login: &BackendLogin<'_>,
    held: HeldUntilGone,
) -> Result<BackendConnection, ConnectError> {
    let deadline = Instant::now() + server.connect_timeout;
    let late = || ConnectError::TimedOut(server.connect_timeout);
    let opened = timeout_at(deadline, open(server));
    let stream = match opened.await.unwrap_or_else(|_| Err(late())) {
        Ok(stream) => stream,
        // No session has begun: PostgreSQL counts a connection only from its startup packet on.
        Err(error) => return Err(error.at(server)),
    };
    let mut half = HalfMade {
        stream,
        buf: BytesMut::new(),
        parameters: Parameters::default(),
    };
    let made = timeout_at(deadline, half.log_in(login))
        .await
        .unwrap_or_else(|_| Err(late()));
    let (pid, secret) = match made {
        Ok(key) => key,
        Err(error) => {
            tokio::spawn(close_stream(half.stream, held, false));
            return Err(error.at(server));
        }
    };
    let mut conn = BackendConnection {
        id: BackendId(server.backends.fetch_add(1, Ordering::Relaxed)),
        tls: half.stream.is_tls(),
        stream: half.stream,
        buf: half.buf,
        key: CancelTarget {
            server: server.clone(),
            pid,
            secret,
        },
        parameters: half.parameters,
        first_parameters: Parameters::default(),
        status: TxStatus::Idle,
        applied: Some(Settings::empty()),
        prepared: PreparedHere::new(login.prepared_statements_max),
        sql_prepared: SqlPreparedHere::default(),
        shown: Vec::new(),
        role: login.role.clone(),
        init_query: login.init_query.clone(),
        held,
    };
    if let Some(sql) = &login.init_query {
        let left = deadline.saturating_duration_since(Instant::now());
        if let Err(error) = simple_query(&mut conn, sql, left).await {
            tokio::spawn(conn.close());
            return Err(ConnectError::InitQuery(error).at(server));
        }
    }
    conn.first_parameters = conn.parameters.clone();
    Ok(conn)
}

/// A connection during its login.
struct HalfMade {
    stream: Stream,
    buf: BytesMut,
    parameters: Parameters,
}

impl HalfMade {
    /// Returns the cancel key.
    async fn log_in(&mut self, login: &BackendLogin<'_>) -> Result<(u32, Arc<[u8]>), ConnectError> {
        let mut message = BytesMut::new();
        to_backend::startup(&mut message, login.role.as_str(), login.database.as_str());
        self.stream.write_all(&message).await?;
        self.stream.flush().await?;
        let Self { stream, buf, .. } = self;
        authenticate(stream, buf, login.role.as_str(), login.password).await?;
        let mut key = None;
        loop {
            let frame = next_frame(&mut self.stream, &mut self.buf).await?;
            match frame.tag {
                b'S' => {
                    let (name, value) = parameter_status(&frame.body)
                        .ok_or(ConnectError::Protocol("a malformed ParameterStatus"))?;
                    self.parameters.set(name, value);
                }
                b'K' => {
                    key = backend_key_data(&frame.body).map(|(pid, secret)| (pid, secret.into()));
                }
                b'Z' => {
                    status(&frame)
                        .map_err(|_| ConnectError::Protocol("a malformed ReadyForQuery"))?;
                    // Poolers in front of the server may send no key: then cancels find nobody.
                    return Ok(key.unwrap_or((0, Arc::from([0; 4]))));
                }
                _ => return Err(ConnectError::Protocol("an unexpected message during login")),
            }
        }
    }
}

/// Opens a connection, encrypted as the mode says; under `prefer` one without TLS if the handshake fails.
pub(super) async fn open<E>(server: &Server) -> Result<Stream, E>
where
    E: From<io::Error> + From<UpgradeError>,
{
    let socket = open_socket(server).await?;
    let upgraded = server.connector.upgrade(socket, server.address.host());
    match upgraded.await {
        Err(error) if server.connector.may_go_on_plain(&error) => {
            tracing::warn!(
                target_name = %server.name, %error,
                "going on without TLS, as target.tls = \"prefer\" allows"
            );
            Ok(Stream::Plain(open_socket(server).await?))
        }
        upgraded => Ok(upgraded?),
    }
}

/// Opens a socket to the server; tries every address its name has.
async fn open_socket(server: &Server) -> io::Result<Socket> {
    match &server.address {
        Address::Unix(path) => Ok(Socket::Unix(UnixStream::connect(path).await?)),
        Address::Tcp { host, port } => {
            let socket = TcpStream::connect((host.as_str(), *port)).await?;
            socket.set_nodelay(true)?;
            if !server.keepalive.is_zero() {
                let keepalive = TcpKeepalive::new().with_time(server.keepalive);
                SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
            }
            Ok(Socket::Tcp(socket))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SslMode, TargetTls};
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    fn server(mode: SslMode, port: u16) -> Server {
        let config = config::Target {
            name: "t".into(),
            host: None,
            port,
            tls: TargetTls {
                mode,
                ca_file: None,
                client: None,
            },
            connect_timeout: Duration::from_secs(10),
            keepalive: Duration::ZERO,
        };
        Server::from_config(&config, "127.0.0.1", port).unwrap()
    }

    #[tokio::test]
    async fn a_failed_handshake_is_followed_by_plaintext_under_prefer_alone() {
        for (mode, plain) in [(SslMode::Prefer, true), (SslMode::Require, false)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let server = server(mode, listener.local_addr().unwrap().port());
            let answers = async {
                let (mut first, _) = listener.accept().await.unwrap();
                first.read_exact(&mut [0; 8]).await.unwrap();
                first.write_all(b"Sno handshake").await.unwrap();
                first.shutdown().await.unwrap();
                let _ = first.read_to_end(&mut Vec::new()).await;
                if plain {
                    listener.accept().await.unwrap();
                }
            };
            let (opened, ()) = tokio::join!(open::<ConnectError>(&server), answers);
            assert_eq!(matches!(opened, Ok(Stream::Plain(_))), plain, "{opened:?}");
            assert_eq!(opened.is_err(), !plain);
        }
    }

    #[test]
    fn a_server_that_refuses_is_reachable_unless_it_serves_nobody() {
        let refused = |code: &[u8]| {
            ConnectError::Server(ServerError {
                code: SqlState::parse(code).unwrap(),
                ..ServerError::parse(b"\0")
            })
        };
        let cases = [
            (refused(b"28P01"), false),
            (refused(b"3D000"), false),
            (refused(b"53300"), false),
            (refused(b"57P03"), true),
            (
                ConnectError::Io(io::ErrorKind::ConnectionRefused.into()),
                true,
            ),
            (ConnectError::TimedOut(Duration::ZERO), true),
            (ConnectError::Protocol("nonsense"), true),
            (ConnectError::CleartextWithoutTls, false),
        ];
        let server = server(SslMode::Disable, 1);
        for (error, unreachable) in cases {
            let error = error.at(&server);
            assert_eq!(error.means_unreachable(), unreachable, "{error}");
        }
    }
}
