//! Cancelling what runs on a backend: a second connection that carries a CancelRequest.

use super::connect::{Server, open};
use crate::tls::Stream;
use crate::tls::connect::UpgradeError;
use crate::wire::to_backend;
use bytes::BytesMut;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Which server process to interrupt, and the proof that we may.
#[derive(Clone)]
pub struct CancelTarget {
    pub(super) server: Arc<Server>,
    pub(super) pid: u32,
    pub(super) secret: Arc<[u8]>,
}

impl CancelTarget {
    /// The server's process that serves it.
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

#[cfg(test)]
impl CancelTarget {
    pub(crate) fn for_tests(server: &Arc<Server>, pid: u32, secret: &[u8]) -> Self {
        Self {
            server: server.clone(),
            pid,
            secret: secret.into(),
        }
    }
}

impl fmt::Debug for CancelTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelTarget")
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

/// Why a cancel is not known to have arrived.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    /// No connection, or it broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// No encryption.
    #[error(transparent)]
    Tls(#[from] UpgradeError),
    /// The server did not close the connection in time.
    #[error("the server did not answer in time")]
    TimedOut,
}

/// Sends a CancelRequest. `Ok` once the server has closed that connection: it does so after it has sent the signal.
pub async fn send_cancel(target: &CancelTarget, deadline: Duration) -> Result<(), CancelError> {
    timeout(deadline, exchange(target))
        .await
        .unwrap_or(Err(CancelError::TimedOut))
}

async fn exchange(target: &CancelTarget) -> Result<(), CancelError> {
    let mut stream: Stream = open::<CancelError>(&target.server).await?;
    let mut request = BytesMut::new();
    to_backend::cancel_request(&mut request, target.pid, &target.secret);
    stream.write_all(&request).await?;
    stream.flush().await?;
    let mut rest = [0; 64];
    loop {
        match stream.read(&mut rest).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // A server that ends TLS without its goodbye has ended all the same.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
