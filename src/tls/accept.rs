//! TLS towards clients: the certificate, and the handshake.

use super::{Socket, Stream};
use crate::config::ServerTls;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};
use std::io;
use std::path::PathBuf;
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

/// What is wrong with the certificate files. Never quotes the private key.
#[derive(Debug, thiserror::Error)]
pub enum TlsFilesError {
    /// A file can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No certificate in the file, or a damaged one.
    #[error("{}: no valid PEM certificate in it", path.display())]
    NoCertificate {
        /// Which.
        path: PathBuf,
    },
    /// No private key in the file, or a damaged one.
    #[error("{}: no valid PEM private key in it", path.display())]
    NoPrivateKey {
        /// Which.
        path: PathBuf,
    },
    /// Certificate and key can't be used together.
    #[error("{} and {} cannot be used together", certificate.display(), private_key.display())]
    Unusable {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        private_key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The system gives no randomness.
    #[error("cannot make keys for TLS session tickets")]
    Tickets(#[source] rustls::Error),
}

impl Acceptor {
    /// Reads the files. Blocks on them.
    pub fn load(files: &ServerTls) -> Result<Self, TlsFilesError> {
        let chain = read_chain(files)?;
        let key = read_key(files)?;
        let leaf = chain
            .first()
            .cloned()
            .ok_or_else(|| no_certificate(files))?;
        let unusable = |source| TlsFilesError::Unusable {
            certificate: files.certificate_file.clone(),
            private_key: files.private_key_file.clone(),
            source,
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
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

fn read_chain(files: &ServerTls) -> Result<Vec<CertificateDer<'static>>, TlsFilesError> {
    let path = &files.certificate_file;
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| match error {
            pem::Error::Io(source) => TlsFilesError::Read {
                path: path.clone(),
                source,
            },
            _ => no_certificate(files),
        })
}

fn read_key(files: &ServerTls) -> Result<PrivateKeyDer<'static>, TlsFilesError> {
    let path = &files.private_key_file;
    // The parser's other errors quote the file.
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        pem::Error::Io(source) => TlsFilesError::Read {
            path: path.clone(),
            source,
        },
        _ => TlsFilesError::NoPrivateKey { path: path.clone() },
    })
}

fn no_certificate(files: &ServerTls) -> TlsFilesError {
    TlsFilesError::NoCertificate {
        path: files.certificate_file.clone(),
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
