//! One throwaway PostgreSQL for the whole run, a database for each test.
//!
//! It runs under a shell that waits for the end of its standard input, a pipe only this process holds: when the process
//! ends, however it ends, the shell stops PostgreSQL and removes its folder.

use super::ports::free_port;
use super::raw::RawClient;
use super::sql::{connect_as, text};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

/// The superuser that tests use: let in without a password.
pub const ROLE: &str = "postgres";

/// Its password, should anybody ask.
pub const PASSWORD: &str = "correct horse";

const BINARIES: &str = "/usr/lib/postgresql/15/bin";

/// `max_connections` of the server.
pub const MAX_CONNECTIONS: u32 = 200;

const STARTS_WITHIN: Duration = Duration::from_secs(60);

const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
fsync = off
synchronous_commit = off
full_page_writes = off
max_connections = 200
max_prepared_transactions = 10
autovacuum = off
log_min_messages = warning
shared_buffers = 32MB
";

/// Roles of a test's own must prove a password.
const HBA: &str = "
local all postgres trust
host  all postgres 127.0.0.1/32 trust
host  all all      127.0.0.1/32 scram-sha-256
";

const UNDER_WATCH: &str = r#"
trap '' INT HUP TERM
"$@" >>"$FOLDER/log" 2>&1 </dev/null &
server=$!
cat >/dev/null
kill -QUIT "$server" 2>/dev/null
wait "$server"
rm -rf "$FOLDER"
"#;

static SERVER: OnceCell<Server> = OnceCell::const_new();
static NEXT_NAME: AtomicUsize = AtomicUsize::new(1);

/// The running PostgreSQL.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    folder: PathBuf,
    // Its standard input is what keeps PostgreSQL alive.
    _watchdog: Child,
}

/// A database of a test's own.
pub struct Database {
    /// Its name.
    pub name: String,
    /// The server it is on.
    pub server: &'static Server,
}

/// Looks at the server from a database of its own, so that it is not counted.
pub struct Observer {
    /// The connection, to ask anything else.
    pub client: Client,
}

/// The server, started by whoever asks first.
pub async fn server() -> &'static Server {
    SERVER.get_or_init(start).await
}

/// A fresh database.
pub async fn database() -> Database {
    let server = server().await;
    let number = NEXT_NAME.fetch_add(1, Ordering::Relaxed);
    // Tests may run a process each against other servers; names still tell them apart.
    let name = format!("test_{}_{number}", std::process::id());
    let maker = connect_as(server.address, "postgres", ROLE, PASSWORD).await;
    let sql = format!("CREATE DATABASE {name} TEMPLATE template0");
    maker.batch_execute(&sql).await.unwrap();
    Database { name, server }
}

/// Somebody who looks on.
pub async fn observer() -> Observer {
    let address = server().await.address;
    Observer {
        client: connect_as(address, "postgres", ROLE, PASSWORD).await,
    }
}

impl Database {
    /// A client without the proxy.
    pub async fn connect(&self) -> Client {
        connect_as(self.server.address, &self.name, ROLE, PASSWORD).await
    }

    /// A client without the proxy, frame by frame.
    pub async fn raw(&self) -> RawClient {
        RawClient::login(self.server.address, &self.name, ROLE, PASSWORD, &[]).await
    }

    /// Runs SQL without the proxy.
    pub async fn execute(&self, sql: &str) {
        self.connect().await.batch_execute(sql).await.unwrap();
    }

    /// A role of this test's own, which must prove its password; returns its name.
    pub async fn role(&self, suffix: &str, password: &str) -> String {
        let role = format!("{}_{suffix}", self.name);
        self.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD '{password}'"))
            .await;
        role
    }
}

impl Observer {
    /// Client connections to the database, in whatever state.
    pub async fn backends(&self, db: &Database) -> usize {
        self.pids(db).await.len()
    }

    /// Their process ids.
    pub async fn pids(&self, db: &Database) -> Vec<i32> {
        let sql = "SELECT pid FROM pg_stat_activity \
                   WHERE datname = $1 AND backend_type = 'client backend' ORDER BY backend_start";
        let rows = self.client.query(sql, &[&db.name]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// How many of the database's connections are in this state, as pg_stat_activity calls it.
    pub async fn in_state(&self, db: &Database, state: &str) -> usize {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND state = $2";
        let row = self.client.query_one(sql, &[&db.name, &state]).await;
        usize::try_from(row.unwrap().get::<_, i64>(0)).unwrap()
    }

    /// Ends one connection, as an administrator would.
    pub async fn terminate(&self, pid: i32) {
        let sql = format!("SELECT pg_terminate_backend({pid}, 5000)");
        text(&self.client, &sql).await;
    }
}

/// PostgreSQL refuses to run as root: then it runs as user postgres.
fn as_server_user(program: &str) -> Vec<String> {
    let path = format!("{BINARIES}/{program}");
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| {
        use std::os::unix::fs::MetadataExt;
        own.uid() == 0
    });
    let prefix: &[&str] = if is_root {
        &[
            "setpriv",
            "--reuid",
            "postgres",
            "--regid",
            "postgres",
            "--clear-groups",
        ]
    } else {
        &[]
    };
    prefix
        .iter()
        .map(ToString::to_string)
        .chain([path])
        .collect()
}

fn command(words: &[String]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).current_dir("/");
    command
}

async fn start() -> Server {
    let folder = make_folder();
    for _ in 0..5 {
        let port = free_port();
        let mut watchdog = run_under_watch(&folder, port);
        if is_up(port, &folder).await {
            return Server {
                address: SocketAddr::from(([127, 0, 0, 1], port)),
                folder,
                _watchdog: watchdog,
            };
        }
        // The shell removes the folder: begin anew.
        drop(watchdog.stdin.take());
        watchdog.wait().unwrap();
    }
    panic!("PostgreSQL does not start");
}

fn make_folder() -> PathBuf {
    let folder = tempfile::Builder::new()
        .prefix("pgsluice-it-")
        .tempdir()
        .unwrap()
        .keep();
    let data = folder.join("data");
    fs::create_dir(&data).unwrap();
    fs::write(folder.join("password"), PASSWORD).unwrap();
    fs::write(folder.join("log"), "").unwrap();
    let words = as_server_user("initdb");
    if words.len() > 1 {
        let owned = Command::new("chown")
            .args(["-R", "postgres:postgres"])
            .arg(&folder)
            .status();
        assert!(owned.unwrap().success());
    }
    let made = command(&words)
        .arg("-D")
        .arg(&data)
        .args(["-U", ROLE, "--no-sync", "--locale=C", "-E", "UTF8"])
        .args(["--auth=scram-sha-256", "--pwfile"])
        .arg(folder.join("password"))
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    append(&data.join("postgresql.conf"), SETTINGS);
    fs::write(data.join("pg_hba.conf"), HBA).unwrap();
    folder
}

fn append(path: &Path, text: &str) {
    let mut whole = fs::read_to_string(path).unwrap();
    whole.push_str(text);
    fs::write(path, whole).unwrap();
}

fn run_under_watch(folder: &Path, port: u16) -> Child {
    let mut watchdog = Command::new("sh");
    watchdog.args(["-c", UNDER_WATCH, "watchdog"]);
    watchdog.args(as_server_user("postgres"));
    watchdog.arg("-D").arg(folder.join("data"));
    watchdog.args(["-p", &port.to_string(), "-k"]).arg(folder);
    // A group of its own: Ctrl-C is for the tests.
    watchdog
        .env("FOLDER", folder)
        .current_dir("/")
        .process_group(0);
    watchdog
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    watchdog.spawn().unwrap()
}

async fn is_up(port: u16, folder: &Path) -> bool {
    let deadline = Instant::now() + STARTS_WITHIN;
    let config = format!("host=127.0.0.1 port={port} user={ROLE} dbname=postgres");
    while Instant::now() < deadline {
        if tokio_postgres::connect(&config, tokio_postgres::NoTls)
            .await
            .is_ok()
        {
            return true;
        }
        let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
        if log.contains("FATAL:  could not create any TCP/IP sockets") {
            return false;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!(
        "{}",
        fs::read_to_string(folder.join("log")).unwrap_or_default()
    );
}
