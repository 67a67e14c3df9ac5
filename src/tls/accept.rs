//! TLS towards clients: the certificate, and the handshake.

use super::files::{self, TlsFault, TlsFilesError};
use super::{Socket, Stream};
use crate::config::ServerTls;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::{ServerConfig, ServerConnection};
use std::io;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// What PostgreSQL calls itself in ALPN (registered with IANA).
const ALPN: &[u8] = b"postgresql";

/// Our certificate and how it is offered. A reload makes a new one.
pub struct Acceptor {
    tls: TlsAcceptor,
    leaf: CertificateDer<'static>,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

impl Acceptor {
    /// Reads the files. Blocks on them.
    pub fn load(files: &ServerTls) -> Result<Self, TlsFilesError> {
        let (chain, key) = files::pair(files)?;
        let leaf = chain
            .first()
            .cloned()
            .ok_or_else(|| TlsFilesError::NoCertificate {
                path: files.certificate_file.clone(),
            })?;
        let unusable = files::unusable(files);
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(&unusable)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Tickets keep a session's state at the client: resumption costs no memory here.
        config.ticketer = ring::Ticketer::new().map_err(TlsFilesError::Tickets)?;
        Ok(Self {
            tls: TlsAcceptor::from(Arc::new(config)),
            leaf,
        })
    }

    /// Every fault of the files, with the key under `listen` that names the file. Blocks on them.
    pub fn faults(files: &ServerTls) -> Vec<TlsFault> {
        files::faults_of_pair(files, || Self::load(files).err())
    }

    /// The handshake with a client that asked first (SSLRequest). ALPN is its choice.
    ///
    /// Not cancel-safe: the socket is gone with the future.
    pub async fn accept(&self, socket: Socket) -> io::Result<Stream> {
        let tls = self.tls.accept(socket).await?;
        Ok(Stream::Tls(Box::new(tls.into())))
    }

    /// The handshake with a client that opened with it. It must say by ALPN that it means PostgreSQL, so that a
    /// browser or a mail server can't be made to talk to us.
    ///
    /// Not cancel-safe: the socket is gone with the future.
    pub async fn accept_direct(&self, socket: Socket) -> io::Result<Stream> {
        let tls = self.tls.accept(socket).await?;
        if !is_postgresql(tls.get_ref().1) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "received direct SSL connection request without ALPN protocol negotiation extension",
            ));
        }
        Ok(Stream::Tls(Box::new(tls.into())))
    }

    /// The leaf certificate, DER: what channel binding (`tls-server-end-point`) is computed from.
    pub fn leaf(&self) -> &[u8] {
        &self.leaf
    }
}

fn is_postgresql(connection: &ServerConnection) -> bool {
    connection.alpn_protocol() == Some(ALPN)
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
