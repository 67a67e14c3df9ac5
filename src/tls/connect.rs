//! TLS towards servers, by libpq's `sslmode`.

use super::files::{self, TlsFault, TlsFilesError};
use super::{Socket, Stream, end_point};
use crate::config::{SslMode, TargetTls};
use crate::wire::to_backend;
use bytes::BytesMut;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

/// How to encrypt towards one server.
#[derive(Clone)]
pub struct Connector {
    mode: SslMode,
    tls: TlsConnector,
}

/// Why there is no encryption.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The server does not offer what the configuration demands.
    #[error("the server does not support TLS, but target.tls = \"{0}\" demands it")]
    NotOffered(&'static str),
    /// It answered with something else.
    #[error("the server answered the TLS request with {0:#04x}")]
    Answer(u8),
    /// The host can't be in a certificate.
    #[error("\"{0}\" can't be checked against a certificate")]
    Name(String),
    /// The handshake failed.
    #[error("TLS handshake failed: {0}")]
    Handshake(io::Error),
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector")
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl Connector {
    /// Reads the certificate files.
    pub fn load(config: &TargetTls) -> Result<Self, TlsFilesError> {
        let provider = super::provider();
        let chain = match &config.ca_file {
            None => None,
            Some(path) => {
                let roots = Arc::new(files::authorities(path)?);
                let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone());
                let verifier = verifier.build();
                Some(verifier.map_err(|error| files::no_authority(path, error))?)
            }
        };
        let verifier = Verifier {
            mode: config.mode,
            chain,
            provider: provider.clone(),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsFilesError::Provider)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let tls = match &config.client {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let (certificates, key) = files::pair(own)?;
                builder
                    .with_client_auth_cert(certificates, key)
                    .map_err(files::unusable(own))?
            }
        };
        Ok(Self {
            mode: config.mode,
            tls: TlsConnector::from(Arc::new(tls)),
        })
    }

    /// Every fault of the files, with the key under `target` that names the file. Blocks on them.
    pub fn faults(config: &TargetTls) -> Vec<TlsFault> {
        let mut faults = Vec::new();
        if let Some(path) = &config.ca_file {
            let authorities = files::authorities(path).err();
            faults.extend(authorities.map(|error| (files::AUTHORITIES_KEY, error)));
        }
        if let Some(own) = &config.client {
            let alone = TargetTls {
                ca_file: None,
                ..config.clone()
            };
            faults.extend(files::faults_of_pair(own, || Self::load(&alone).err()));
        }
        faults
    }

    /// Whether a new connection without TLS may follow an encrypted one that failed like this, as with libpq's `prefer`.
    pub fn may_go_on_plain(&self, error: &UpgradeError) -> bool {
        self.mode == SslMode::Prefer && matches!(error, UpgradeError::Handshake(_))
    }

    /// Encrypts a fresh connection as the mode says. Unix sockets stay as they are, as with libpq.
    pub async fn upgrade(&self, mut socket: Socket, host: &str) -> Result<Stream, UpgradeError> {
        if self.mode == SslMode::Disable || socket.is_unix() {
            return Ok(Stream::Plain(socket));
        }
        let mut request = BytesMut::new();
        to_backend::ssl_request(&mut request);
        socket.write_all(&request).await?;
        // One byte and no more: what follows in the clear must not be taken for the handshake (CVE-2021-23222).
        match socket.read_u8().await? {
            b'S' => {}
            b'N' if self.mode == SslMode::Prefer => return Ok(Stream::Plain(socket)),
            b'N' => return Err(UpgradeError::NotOffered(label(self.mode))),
            other => return Err(UpgradeError::Answer(other)),
        }
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| UpgradeError::Name(host.to_owned()))?;
        let tls = self
            .tls
            .connect(name, socket)
            .await
            .map_err(UpgradeError::Handshake)?;
        Ok(Stream::Tls(Box::new(tls.into())))
    }
}

fn label(mode: SslMode) -> &'static str {
    match mode {
        SslMode::Disable => "disable",
        SslMode::Prefer => "prefer",
        SslMode::Require => "require",
        SslMode::VerifyCa => "verify-ca",
        SslMode::VerifyFull => "verify-full",
    }
}

/// The tls-server-end-point channel binding of the server's certificate, inside TLS.
pub fn channel_binding(stream: &Stream) -> Option<Vec<u8>> {
    let Stream::Tls(tls) = stream else {
        return None;
    };
    let certificate = tls.get_ref().1.peer_certificates()?.first()?;
    end_point::hash(certificate)
}

/// Checks as much of a certificate as the mode asks for; always that the server has its key.
#[derive(Debug)]
struct Verifier {
    mode: SslMode,
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if matches!(
            self.mode,
            SslMode::Disable | SslMode::Prefer | SslMode::Require
        ) {
            return Ok(ServerCertVerified::assertion());
        }
        let Some(chain) = &self.chain else {
            return Err(CertificateError::UnknownIssuer.into());
        };
        let checked =
            chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match checked {
            // The chain is checked before the name, so a wrong name means a good chain.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.mode == SslMode::VerifyCa => Ok(ServerCertVerified::assertion()),
            Ok(_) if self.mode == SslMode::VerifyFull => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
