//! A target whose server follows a script, for tests of what no real server can be made to do.

use super::TargetPools;
use crate::backend::connect::Server;
use crate::config;
use crate::drain::Drain;
use crate::ids::{Database, Role};
use crate::metrics::Metrics;
use crate::secrets::SecretStore;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

pub(super) const READY: &[u8] = b"Z\0\0\0\x05I";

/// AuthenticationOk.
const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0";

const CANCEL_REQUEST: &[u8] = &80_877_102u32.to_be_bytes();

pub(super) struct Fixture {
    pub(super) pools: Arc<TargetPools>,
    /// Logins the server has seen.
    pub(super) accepted: Arc<AtomicUsize>,
    _drain: Drain,
    _dir: TempDir,
}

/// What the server says to one message of a client: `None` for the startup, then whole queries. `Ok(None)`: nothing.
pub(super) type Script = fn(connection: usize, query: Option<&[u8]>) -> Option<Vec<u8>>;

/// `pool` holds lines of the section `[pool]`.
pub(super) fn target(pool: &str, script: Script) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let host = dir.path().to_str().unwrap();
    let file = dir.path().join("pgsluice.toml");
    let text = format!("[target]\nhost = \"{host}\"\ntls = \"disable\"\n[pool]\n{pool}\n");
    std::fs::write(&file, text).unwrap();
    let secrets = dir.path().join("secrets.json");
    std::fs::write(&secrets, r#"{"username": "app", "password": "x"}"#).unwrap();
    std::fs::set_permissions(&secrets, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = config::load(&file, std::iter::empty()).unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let listener = UnixListener::bind(dir.path().join(".s.PGSQL.5432")).unwrap();
    tokio::spawn(serve(listener, accepted.clone(), script));
    let drain = Drain::new();
    let pools = TargetPools::new(
        &config,
        Arc::new(Server::from_config(&config.target, host, 5432).unwrap()),
        Arc::new(SecretStore::load(&secrets).unwrap()),
        Metrics::new(),
        drain.observer(),
    );
    Fixture {
        pools,
        accepted,
        _drain: drain,
        _dir: dir,
    }
}

impl Fixture {
    pub(super) fn pool(&self, database: &str, cap: Option<usize>) -> Arc<super::Pool> {
        self.pools
            .pool(&Database::new(database), &Role::new("app"), cap)
    }

    pub(super) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

async fn serve(listener: UnixListener, accepted: Arc<AtomicUsize>, script: Script) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(talk(stream, accepted.clone(), script));
    }
}

/// Ends as the client says goodbye, or after a fatal error.
async fn talk(mut stream: UnixStream, accepted: Arc<AtomicUsize>, script: Script) -> Option<()> {
    let startup = read_body(&mut stream).await?;
    if startup.starts_with(CANCEL_REQUEST) {
        return None;
    }
    let number = accepted.fetch_add(1, Ordering::SeqCst);
    answer(&mut stream, script(number, None)).await?;
    loop {
        let tag = stream.read_u8().await.ok()?;
        let body = read_body(&mut stream).await?;
        if tag == b'X' {
            return None;
        }
        answer(&mut stream, script(number, Some(&body))).await?;
    }
}

async fn read_body(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let len = stream.read_u32().await.ok()?;
    let mut body = vec![0; len as usize - 4];
    stream.read_exact(&mut body).await.ok()?;
    Some(body)
}

async fn answer(stream: &mut UnixStream, reply: Option<Vec<u8>>) -> Option<()> {
    let reply = reply.unwrap_or_default();
    stream.write_all(&reply).await.ok()?;
    (!reply.starts_with(b"E") || reply.ends_with(READY)).then_some(())
}

/// A login that succeeds.
pub(super) fn welcome() -> Option<Vec<u8>> {
    Some([WELCOME, READY].concat())
}

/// One row with one value.
pub(super) fn row(value: &str) -> Option<Vec<u8>> {
    let len = value.len() as u32;
    let mut reply = b"D".to_vec();
    reply.extend((4 + 2 + 4 + len).to_be_bytes());
    reply.extend(1u16.to_be_bytes());
    reply.extend(len.to_be_bytes());
    reply.extend(value.as_bytes());
    reply.extend(READY);
    Some(reply)
}

/// An ErrorResponse, as the last word if `fatal`.
pub(super) fn error(code: &str, fatal: bool) -> Option<Vec<u8>> {
    let fields = format!("SERROR\0C{code}\0Mno\0\0");
    let mut reply = b"E".to_vec();
    reply.extend((4 + fields.len() as u32).to_be_bytes());
    reply.extend(fields.as_bytes());
    if !fatal {
        reply.extend(READY);
    }
    Some(reply)
}
