//! The proxy as a child process.

use super::metrics::{Metrics, http_get};
use super::ports::free_port;
use super::raw::RawClient;
use super::server::{Database, PASSWORD, ROLE, server};
use super::sql::connect_as;
use super::wait::PATIENCE;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use toml::{Table, Value};

const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Lines of the log that a failed test prints.
const LOG_TAIL: usize = 200;

/// A proxy to be.
#[must_use]
pub struct ProxyBuilder {
    config: Table,
    secrets: Vec<serde_json::Value>,
    files: Vec<(String, Vec<u8>)>,
    env: Vec<(String, String)>,
}

/// A running proxy.
pub struct Proxy {
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where metrics are served, unless that is off.
    pub admin: SocketAddr,
    child: Child,
    log: Arc<Mutex<String>>,
    folder: TempDir,
}

/// A proxy before the shared server, with the superuser's secret and trust.
pub fn proxy() -> ProxyBuilder {
    let builder = ProxyBuilder {
        config: Table::new(),
        secrets: Vec::new(),
        files: Vec::new(),
        env: Vec::new(),
    };
    builder
        .secret(ROLE, PASSWORD)
        .set("auth.trust", vec![ROLE])
        .set("target.tls", "disable")
        .set("log.level", "info,pgsluice=debug")
}

impl ProxyBuilder {
    /// Sets any key of the configuration, "section.key".
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        let (section, key) = key.split_once('.').expect("section.key");
        let section = self
            .config
            .entry(section)
            .or_insert(Value::Table(Table::new()));
        section
            .as_table_mut()
            .unwrap()
            .insert(key.into(), value.into());
        self
    }

    /// `pool.max_connections`
    pub fn max_connections(self, count: u32) -> Self {
        self.set("pool.max_connections", i64::from(count))
    }

    /// `pool.mode`
    pub fn mode(self, mode: &str) -> Self {
        self.set("pool.mode", mode)
    }

    /// One more of `pool.rules`, as TOML.
    pub fn rule(mut self, rule: &str) -> Self {
        let rule: Table = rule.parse().unwrap();
        let pool = self
            .config
            .entry("pool")
            .or_insert(Value::Table(Table::new()));
        let rules = pool
            .as_table_mut()
            .unwrap()
            .entry("rules")
            .or_insert(Value::Array(vec![]));
        rules.as_array_mut().unwrap().push(rule.into());
        self
    }

    /// One more of the secrets.
    pub fn secret(mut self, role: &str, password: &str) -> Self {
        self.secrets
            .push(serde_json::json!({ "username": role, "password": password }));
        self
    }

    /// Nobody is let in without a password.
    pub fn with_passwords(self) -> Self {
        self.set("auth.trust", Vec::<String>::new())
    }

    /// A file beside the configuration; only its owner may read it.
    pub fn file(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.into(), content.into()));
        self
    }

    /// A variable of the environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts it; returns when it is ready for clients.
    pub async fn start(self) -> Proxy {
        for _ in 0..5 {
            if let Some(proxy) = self.try_start().await {
                return proxy;
            }
        }
        panic!("the proxy finds no port to listen on");
    }

    /// `None` if somebody else has taken a port meanwhile.
    async fn try_start(&self) -> Option<Proxy> {
        let folder = tempfile::Builder::new()
            .prefix("pgsluice-it-")
            .tempdir()
            .unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let has_admin = self.write_files(folder.path(), address, admin).await;
        let mut command = Command::new("setpriv");
        // The proxy must not outlive the test, however that ends.
        command.args([
            "--pdeathsig",
            "KILL",
            env!("CARGO_BIN_EXE_pgsluice"),
            "run",
            "--config",
        ]);
        command.arg(folder.path().join("pgsluice.toml"));
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        collect(&mut child, &log);
        let mut proxy = Proxy {
            address,
            admin,
            child,
            log,
            folder,
        };
        proxy.is_ready(has_admin).await.then_some(proxy)
    }

    async fn write_files(&self, folder: &Path, address: SocketAddr, admin: SocketAddr) -> bool {
        let target = server().await.address;
        let mut config = self.config.clone();
        let mut default = |section: &str, key: &str, value: Value| {
            let section = config.entry(section).or_insert(Value::Table(Table::new()));
            section
                .as_table_mut()
                .unwrap()
                .entry(key)
                .or_insert(value)
                .clone()
        };
        default("listen", "addresses", vec![address.to_string()].into());
        default("target", "host", target.ip().to_string().into());
        default("target", "port", i64::from(target.port()).into());
        default("run", "worker_threads", 2.into());
        let admin = default("admin", "address", admin.to_string().into());
        write(folder, "pgsluice.toml", config.to_string().as_bytes());
        let secrets = serde_json::to_vec(&self.secrets).unwrap();
        write(folder, "secrets.json", &secrets);
        for (name, content) in &self.files {
            write(folder, name, content);
        }
        admin.as_str() != Some("off")
    }
}

fn write(folder: &Path, name: &str, content: &[u8]) {
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
}

/// Reads the log until the proxy ends.
fn collect(child: &mut Child, log: &Arc<Mutex<String>>) {
    let (stderr, log) = (child.stderr.take().unwrap(), log.clone());
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let mut log = log.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
}

impl Proxy {
    async fn is_ready(&mut self, has_admin: bool) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                let log = self.log();
                assert!(log.contains("Address already in use"), "{status}\n{log}");
                return false;
            }
            let ready = if has_admin {
                matches!(http_get(self.admin, "/readyz").await, Ok((200, _)))
            } else {
                tokio::net::TcpStream::connect(self.address).await.is_ok()
            };
            if ready {
                return true;
            }
            sleep(LOOK_AGAIN).await;
        }
        panic!("the proxy does not get ready:\n{}", self.log());
    }

    /// A client of the superuser.
    pub async fn connect(&self, db: &Database) -> Client {
        self.connect_as(db, ROLE, PASSWORD).await
    }

    /// A client.
    pub async fn connect_as(&self, db: &Database, role: &str, password: &str) -> Client {
        connect_as(self.address, &db.name, role, password).await
    }

    /// A client of the superuser, frame by frame.
    pub async fn raw(&self, db: &Database) -> RawClient {
        self.raw_with(db, &[]).await
    }

    /// The same with startup parameters.
    pub async fn raw_with(&self, db: &Database, parameters: &[(&str, &str)]) -> RawClient {
        RawClient::login(self.address, &db.name, ROLE, PASSWORD, parameters).await
    }

    /// A scrape of its metrics.
    pub async fn metrics(&self) -> Metrics {
        let (status, text) = self.http("/metrics").await;
        assert_eq!(status, 200, "{text}");
        Metrics { text }
    }

    /// GET from the admin address: status and body.
    pub async fn http(&self, path: &str) -> (u16, String) {
        http_get(self.admin, path).await.unwrap()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The folder of its configuration.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Sends it a signal: "TERM", "HUP", …
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.unwrap().success());
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the proxy does not end");
            sleep(LOOK_AGAIN).await;
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_TAIL)..];
            eprintln!("--- the proxy's log ---\n{}", tail.join("\n"));
        }
    }
}
