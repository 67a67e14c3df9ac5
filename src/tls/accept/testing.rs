//! Certificates and TLS clients for tests.

use super::Acceptor;
use crate::config::ServerTls;
use crate::tls::{Socket, Stream};
use rcgen::{KeyPair, SignatureAlgorithm};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A self-signed certificate for `localhost`, in files that live as long as this value.
pub(crate) struct Certificate {
    pub(crate) files: ServerTls,
    pub(crate) der: Vec<u8>,
    _folder: tempfile::TempDir,
}

impl Certificate {
    pub(crate) fn new(algorithm: &'static SignatureAlgorithm) -> Self {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        let cert = params.self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let files = ServerTls {
            certificate_file: folder.path().join("server.crt"),
            private_key_file: folder.path().join("server.key"),
        };
        std::fs::write(&files.certificate_file, cert.pem()).unwrap();
        std::fs::write(&files.private_key_file, key.serialize_pem()).unwrap();
        Self {
            files,
            der: cert.der().to_vec(),
            _folder: folder,
        }
    }

    pub(crate) fn acceptor(&self) -> Acceptor {
        Acceptor::load(&self.files).unwrap()
    }

    /// A client that trusts this certificate and offers these ALPN names.
    pub(crate) async fn connect(
        &self,
        socket: TcpStream,
        alpn: &[&str],
    ) -> std::io::Result<Stream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone().into()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("localhost").unwrap();
        let tls = TlsConnector::from(Arc::new(config))
            .connect(name, Socket::Tcp(socket))
            .await?;
        Ok(Stream::Tls(Box::new(tls.into())))
    }
}

/// Two ends of a TCP connection.
pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, server) = tokio::join!(client, listener.accept());
    (client.unwrap(), server.unwrap().0)
}
