//! Accepts clients: one task a client, back-off when the system is out of descriptors, none after the drain began.

use super::serve::{Front, Newcomer};
use crate::config::Listen;
use crate::drain::Phase;
use crate::metrics::EndpointMetrics;
use crate::tls::Socket;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, UnixListener};

/// Clients the kernel holds before they are accepted: a surge must not be refused by it.
const BACKLOG: u32 = 4096;

/// What numbers the Unix socket where there is no TCP.
const PORT: u16 = 6432;

/// After a failed accept: somebody must have closed a descriptor first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A place where clients connect.
pub struct Listener {
    socket: Listening,
    name: Arc<str>,
    metrics: EndpointMetrics,
}

enum Listening {
    Tcp(TcpListener, Duration),
    Unix(UnixListener, PathBuf),
}

/// A place where clients can't connect.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {place}: {source}")]
pub struct ListenError {
    place: String,
    source: io::Error,
}

impl Listener {
    /// Opens every listener of the configuration.
    pub fn open_all(
        config: &Listen,
        metrics: impl Fn(&str) -> EndpointMetrics,
    ) -> Result<Vec<Listener>, ListenError> {
        let mut listeners = Vec::new();
        let mut port = None;
        for address in &config.addresses {
            let place = address.to_string();
            let fail = |source| ListenError {
                place: place.clone(),
                source,
            };
            let socket = tcp_listener(*address).map_err(fail)?;
            // Port 0 has become another.
            let address = socket.local_addr().map_err(fail)?;
            port.get_or_insert(address.port());
            let place = address.to_string();
            listeners.push(Listener {
                socket: Listening::Tcp(socket, config.keepalive),
                metrics: metrics(&place),
                name: place.into(),
            });
        }
        if let Some(folder) = &config.unix_socket_dir {
            let path = folder.join(format!(".s.PGSQL.{}", port.unwrap_or(PORT)));
            let socket =
                unix_listener(&path, config.unix_socket_mode).map_err(|source| ListenError {
                    place: path.display().to_string(),
                    source,
                })?;
            listeners.push(Listener {
                socket: Listening::Unix(socket, path),
                metrics: metrics("unix"),
                name: "unix".into(),
            });
        }
        Ok(listeners)
    }

    /// What logs and metrics call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Accepts clients until the drain begins.
    pub async fn run(self, front: Arc<Front>) {
        let mut drain = front.drain.clone();
        loop {
            let accepted = tokio::select! {
                () = drain.reached(Phase::Draining) => return,
                accepted = self.accept() => accepted,
            };
            match accepted {
                Ok((socket, address)) => {
                    let newcomer = Newcomer {
                        socket,
                        address,
                        endpoint: self.name.clone(),
                        metrics: self.metrics.clone(),
                        place: front.strangers.enter(address),
                    };
                    tokio::spawn(front.clone().serve(newcomer));
                }
                Err(error) => {
                    tracing::error!(endpoint = %self.name, %error, "accept failed; trying again");
                    // Out of descriptors, usually: strangers must not hold the last ones.
                    front.strangers.evict_one();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Cancel-safe.
    async fn accept(&self) -> io::Result<(Socket, Option<IpAddr>)> {
        match &self.socket {
            Listening::Tcp(listener, keepalive) => {
                let (socket, address) = listener.accept().await?;
                // A client gone already is found out when it is read.
                let _ = socket.set_nodelay(true);
                if !keepalive.is_zero() {
                    let keepalive = TcpKeepalive::new().with_time(*keepalive);
                    let _ = SockRef::from(&socket).set_tcp_keepalive(&keepalive);
                }
                Ok((Socket::Tcp(socket), Some(address.ip())))
            }
            Listening::Unix(listener, _) => {
                let (socket, _) = listener.accept().await?;
                Ok((Socket::Unix(socket), None))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listening::Unix(_, path) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn tcp_listener(address: std::net::SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        // As PostgreSQL: or [::] would take 0.0.0.0's place.
        SockRef::from(&socket).set_only_v6(true)?;
        socket
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A socket left behind by a process that is gone is replaced; one that answers is not, and neither is another file.
fn unix_listener(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let in_the_way = |metadata: std::fs::Metadata| !metadata.file_type().is_socket();
    if path.symlink_metadata().is_ok_and(in_the_way) {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file of that name which is not a socket",
        ));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn both_wildcards_have_the_same_port() {
        let four = tcp_listener("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = four.local_addr().unwrap().port();
        match tcp_listener(format!("[::]:{port}").parse().unwrap()) {
            Ok(six) => assert_eq!(six.local_addr().unwrap().port(), port),
            // No IPv6 here.
            Err(error) => assert_ne!(error.kind(), io::ErrorKind::AddrInUse),
        }
    }

    #[tokio::test]
    async fn a_listener_is_named_by_the_port_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let config = Listen {
            addresses: vec!["127.0.0.1:0".parse().unwrap()],
            unix_socket_dir: Some(folder.path().into()),
            unix_socket_mode: 0o700,
            tls: None,
            require_tls: false,
            login_timeout: Duration::ZERO,
            keepalive: Duration::ZERO,
        };
        let metrics = Metrics::new();
        let listeners = Listener::open_all(&config, |name| metrics.endpoint(name)).unwrap();
        let port = listeners[0].name().strip_prefix("127.0.0.1:").unwrap();
        assert_ne!(port, "0");
        assert!(
            metrics
                .render()
                .contains(&format!("endpoint=\"127.0.0.1:{port}\""))
        );
        assert!(folder.path().join(format!(".s.PGSQL.{port}")).exists());
    }

    #[tokio::test]
    async fn only_a_dead_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        std::fs::write(&path, "precious").unwrap();
        let refused = unix_listener(&path, 0o700).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
        let live = unix_listener(&path, 0o700).unwrap();
        let refused = unix_listener(&path, 0o700).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(live);
        assert!(unix_listener(&path, 0o700).is_ok());
    }
}
