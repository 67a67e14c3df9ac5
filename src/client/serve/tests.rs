use super::*;
use crate::backend::cancel::CancelTarget;
use crate::backend::connect::Server;
use crate::config;
use crate::drain::Drain;
use crate::session::roster::Timeouts;
use crate::tls::accept::testing::tcp_pair;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

/// A front whose server is whatever listens at `port` on this machine.
struct Stage {
    front: Arc<Front>,
    server: Arc<Server>,
    _drain: Drain,
}

fn stage(port: u16, settings: &str) -> Stage {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let secrets = file(
        "secrets.json",
        r#"[{"username":"ann","password":"pencil"}]"#,
    );
    let target = format!("{settings}\n[target]\nhost = '127.0.0.1'\nport = {port}\n");
    let config = file("pgsluice.toml", &target);
    let config = Arc::new(config::load(&config, std::iter::empty()).unwrap());
    let secrets = Arc::new(SecretStore::load(&secrets).unwrap());
    let (metrics, drain) = (Metrics::new(), Drain::new());
    let server = Arc::new(Server::from_config(&config.target, "127.0.0.1", port).unwrap());
    let target = TargetPools::new(
        &config,
        server.clone(),
        secrets.clone(),
        metrics.clone(),
        drain.observer(),
    );
    let front = Arc::new(Front {
        acceptor: None,
        client_secrets: ClientSecrets::new(),
        limits: Limits::new(config.limits.clone()),
        strangers: Strangers::new(&config.limits),
        target,
        parameters: LoginParameters::default(),
        cancels: Arc::default(),
        roster: Roster::new(Timeouts {
            idle: config.pool.idle_client_timeout,
            in_transaction: config.pool.idle_in_transaction_timeout,
            query: config.pool.query_timeout,
        }),
        metrics,
        drain: drain.observer(),
        secrets,
        config,
    });
    Stage {
        front,
        server,
        _drain: drain,
    }
}

impl Stage {
    /// A client's end of a connection that is being served.
    async fn client(&self) -> TcpStream {
        let (client, socket) = tcp_pair().await;
        tokio::spawn(self.front.clone().serve(Newcomer {
            socket: Socket::Tcp(socket),
            address: Some(IpAddr::from([127, 0, 0, 1])),
            endpoint: "e".into(),
            place: self.front.strangers.enter(None),
            metrics: self.front.metrics.endpoint("e"),
        }));
        client
    }
}

#[tokio::test]
async fn a_cancel_request_ends_when_it_has_been_carried_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let stage = stage(port, "");
    let (key, handle) = stage.front.cancels.register(false);
    handle.lend(CancelTarget::for_tests(&stage.server, 7, b"abcd"));
    let mut client = stage.client().await;
    let request = [
        &[0, 0, 0, 16, 4, 210, 22, 46][..],
        &key.client.0.to_be_bytes(),
        key.secret(),
    ];
    client.write_all(&request.concat()).await.unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let waiting = tokio::spawn({
        let ended = ended.clone();
        async move {
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
            ended.store(true, Ordering::SeqCst);
        }
    });
    let (mut carrier, _) = listener.accept().await.unwrap();
    // TLS is asked for first.
    carrier.read_exact(&mut [0; 8]).await.unwrap();
    carrier.write_all(b"N").await.unwrap();
    carrier.read_exact(&mut [0; 16]).await.unwrap();
    assert!(
        !ended.load(Ordering::SeqCst),
        "closed before the signal was sent"
    );
    drop(carrier);
    waiting.await.unwrap();
}

#[tokio::test]
async fn a_silent_stranger_makes_room_for_the_next() {
    let stage = stage(1, "[limits]\nmax_logins_in_progress = 1");
    let mut silent = stage.client().await;
    let mut next = stage.client().await;
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    next.write_all(b"\0\0\0\x12\0\x03\0\0user\0ann\0\0")
        .await
        .unwrap();
    assert_eq!(next.read_u8().await.unwrap(), b'R');
}
