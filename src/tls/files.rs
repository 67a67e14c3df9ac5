//! Certificates and keys from PEM files.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};

/// Files that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFilesError {
    /// Not readable, or not PEM.
    #[error("{}: cannot be read as PEM: {reason}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong; never its contents.
        reason: String,
    },
    /// No certificate in it.
    #[error("{}: holds no certificate", .0.display())]
    NoCertificate(PathBuf),
    /// rustls does not take it.
    #[error("{}: cannot be used: {reason}", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The cryptography can't be set up.
    #[error("TLS cannot be set up: {0}")]
    Provider(rustls::Error),
}

impl TlsFilesError {
    pub(super) fn unusable(path: &Path, error: impl std::fmt::Display) -> Self {
        Self::Unusable {
            path: path.to_owned(),
            reason: error.to_string(),
        }
    }
}

fn unreadable(path: &Path, error: impl std::fmt::Display) -> TlsFilesError {
    TlsFilesError::Unreadable {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

/// All certificates of a PEM file.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFilesError> {
    let all = CertificateDer::pem_file_iter(path)
        .map_err(|error| unreadable(path, error))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unreadable(path, error))?;
    if all.is_empty() {
        return Err(TlsFilesError::NoCertificate(path.to_owned()));
    }
    Ok(all)
}

/// The private key of a PEM file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFilesError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| unreadable(path, error))
}
