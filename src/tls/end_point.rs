//! tls-server-end-point channel binding (RFC 5929, section 4.1): a hash of the server's certificate, by the hash its
//! signature uses; MD5 and SHA-1 count as SHA-256.

use ring::digest::{SHA256, SHA384, SHA512, digest};
use rustls::pki_types::CertificateDer;
use x509_certificate::{DigestAlgorithm, SignatureAlgorithm, X509Certificate};

/// `None` for a signature whose hash is not defined (Ed25519) or a certificate that can't be read.
pub(super) fn hash(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = X509Certificate::from_der(certificate).ok()?;
    let algorithm = match parsed.signature_algorithm()? {
        SignatureAlgorithm::Ed25519 => return None,
        algorithm => algorithm.digest_algorithm()?,
    };
    let algorithm = match algorithm {
        DigestAlgorithm::Sha384 => &SHA384,
        DigestAlgorithm::Sha512 => &SHA512,
        _ => &SHA256,
    };
    Some(digest(algorithm, certificate).as_ref().to_vec())
}
