//! Certificates and keys from PEM files.

use crate::config::ServerTls;
use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io;
use std::path::{Path, PathBuf};

/// A certificate chain, leaf first, and its key.
pub(super) type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A fault, and the configuration's key that names the file.
pub type TlsFault = (&'static str, TlsFilesError);

/// What is wrong with certificate files. Never quotes them: the PEM parser's own errors quote private keys.
#[derive(Debug, thiserror::Error)]
pub enum TlsFilesError {
    /// A file can't be read.
    #[error("cannot read {}: {source}", path.display())]
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
    #[error("{} and {} cannot be used together: {source}", certificate.display(), private_key.display())]
    Unusable {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        private_key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// A certificate that can be no authority.
    #[error("{}: cannot be used as certificate authority: {reason}", path.display())]
    NoAuthority {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The system gives no randomness.
    #[error("cannot make keys for TLS session tickets")]
    Tickets(#[source] rustls::Error),
    /// The cryptography can't be set up.
    #[error("TLS cannot be set up: {0}")]
    Provider(rustls::Error),
}

/// All certificates of a PEM file; there is at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFilesError> {
    let none = || TlsFilesError::NoCertificate { path: path.into() };
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| failed(path, error, none()))?;
    if all.is_empty() { Err(none()) } else { Ok(all) }
}

/// The private key of a PEM file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFilesError> {
    let none = TlsFilesError::NoPrivateKey { path: path.into() };
    PrivateKeyDer::from_pem_file(path).map_err(|error| failed(path, error, none))
}

fn failed(path: &Path, error: pem::Error, otherwise: TlsFilesError) -> TlsFilesError {
    match error {
        pem::Error::Io(source) => TlsFilesError::Read {
            path: path.into(),
            source,
        },
        _ => otherwise,
    }
}

/// Certificate and key; whether they belong together is for rustls to say.
pub(super) fn pair(files: &ServerTls) -> Result<Pair, TlsFilesError> {
    Ok((
        certificates(&files.certificate_file)?,
        private_key(&files.private_key_file)?,
    ))
}

/// The fault of a pair that rustls does not take.
pub(super) fn unusable(files: &ServerTls) -> impl Fn(rustls::Error) -> TlsFilesError {
    let (certificate, private_key) = (&files.certificate_file, &files.private_key_file);
    move |source| TlsFilesError::Unusable {
        certificate: certificate.clone(),
        private_key: private_key.clone(),
        source,
    }
}

/// The certificate authorities of a PEM file.
pub(super) fn authorities(path: &Path) -> Result<RootCertStore, TlsFilesError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| no_authority(path, error))?;
    }
    Ok(roots)
}

pub(super) fn no_authority(path: &Path, error: impl std::fmt::Display) -> TlsFilesError {
    TlsFilesError::NoAuthority {
        path: path.into(),
        reason: error.to_string(),
    }
}

/// Every fault of a pair; `load` tries the files that are good each by itself.
pub(super) fn faults_of_pair(
    files: &ServerTls,
    load: impl FnOnce() -> Option<TlsFilesError>,
) -> Vec<TlsFault> {
    let certificate = certificates(&files.certificate_file).err();
    let key = private_key(&files.private_key_file).err();
    let mut faults: Vec<TlsFault> = Vec::new();
    faults.extend(certificate.map(|error| (CERTIFICATE_KEY, error)));
    faults.extend(key.map(|error| (PRIVATE_KEY_KEY, error)));
    if faults.is_empty() {
        faults.extend(load().map(|error| (CERTIFICATE_KEY, error)));
    }
    faults
}

const CERTIFICATE_KEY: &str = "tls_certificate_file";
const PRIVATE_KEY_KEY: &str = "tls_private_key_file";
pub(super) const AUTHORITIES_KEY: &str = "tls_ca_file";
