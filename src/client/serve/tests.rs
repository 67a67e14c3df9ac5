use super::*;
use crate::backend::cancel::CancelTarget;
use crate::backend::connect::Server;
use crate::config;
use crate::drain::Drain;
use crate::session::roster::Timeouts;
use crate::tls::accept::testing::tcp_pair;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::{TcpListener, TcpStream};

/// A front whose server is whatever listens at `port` on this machine.
struct Stage {
    front: Arc<Front>,
    server: Arc<Server>,
    drain: Drain,
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
        statements: Arc::default(),
        listeners: Arc::default(),
        cancels: Arc::default(),
        roster: Roster::new(Timeouts {
            idle: config.pool.idle_client_timeout,
            in_transaction: config.pool.idle_in_transaction_timeout,
            query: config.pool.query_timeout,
        }),
        pinning: Pinning::default(),
        metrics,
        drain: drain.observer(),
        secrets,
        config,
    });
    Stage {
        front,
        server,
        drain,
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

    /// A trusted client that has logged in and waits for a backend of a server that does not answer.
    async fn waiting_client(&self, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let mut client = self.client().await;
        client.write_all(LOGIN).await.unwrap();
        let mut ok = [0; 9];
        client.read_exact(&mut ok).await.unwrap();
        assert_eq!(ok, *b"R\0\0\0\x08\0\0\0\0");
        (client, listener.accept().await.unwrap().0)
    }

    fn setups(&self, result: &str) -> bool {
        let line = format!("setup_total{{endpoint=\"e\",result=\"{result}\"}} 1");
        self.front.metrics.render().contains(&line)
    }
}

const LOGIN: &[u8] = b"\0\0\0\x12\0\x03\0\0user\0ann\0\0";

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
    next.write_all(LOGIN).await.unwrap();
    assert_eq!(next.read_u8().await.unwrap(), b'R');
}

#[tokio::test]
async fn a_client_that_waits_for_a_backend_hears_of_the_drain_which_waits_for_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stage = stage(
        listener.local_addr().unwrap().port(),
        "auth.trust = ['ann']",
    );
    let (mut client, _server) = stage.waiting_client(&listener).await;
    assert!(!stage.drain.wait(Duration::from_millis(1)).await);
    stage.drain.advance(Phase::Draining);
    let mut told = Vec::new();
    client.read_to_end(&mut told).await.unwrap();
    assert!(String::from_utf8_lossy(&told).contains("57P03"), "{told:?}");
    assert!(stage.setups("failed_draining"));
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_for_a_backend_is_missed_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stage = stage(
        listener.local_addr().unwrap().port(),
        "auth.trust = ['ann']",
    );
    let (client, _server) = stage.waiting_client(&listener).await;
    drop(client);
    // The drain counts it; nothing else does here.
    assert!(stage.drain.wait(Duration::from_secs(60)).await);
    assert!(stage.setups("failed_protocol"));
}

#[tokio::test]
async fn a_client_that_takes_too_long_to_prove_itself_is_told_so() {
    let stage = stage(1, "listen.login_timeout = '100ms'");
    let mut silent = stage.client().await;
    assert_eq!(
        silent.read(&mut [0]).await.unwrap(),
        0,
        "nothing said, nothing told"
    );
    let mut client = stage.client().await;
    client.write_all(LOGIN).await.unwrap();
    let mut told = Vec::new();
    client.read_to_end(&mut told).await.unwrap();
    let told = String::from_utf8_lossy(&told);
    assert!(told.contains("57014") && told.contains("timeout"), "{told}");
}

#[tokio::test]
async fn a_client_that_leaves_to_ask_for_a_password_is_not_refused() {
    let mut stage = stage(1, "");
    let mut client = stage.client().await;
    client.write_all(LOGIN).await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'R');
    drop(client);
    while !stage.setups("failed_protocol") {
        tokio::task::yield_now().await;
    }
    assert!(stage.drain.wait(Duration::from_secs(1)).await);
}

#[test]
fn a_binding_that_does_not_match_is_a_failed_proof() {
    for error in [ScramError::BindingMismatch, ScramError::BindingNegotiation] {
        let refusal = Refusal::Auth(AuthError::Scram(error));
        assert_eq!(refusal.result(), SetupResult::FailedAuth);
    }
}
