use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::config::{ConfigFaults, env, file, load};

/// A folder with a configuration and the files it may name; removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "pgsluice-config-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        for name in ["secrets.json", "a.crt", "a.key", "ca.crt"] {
            fs::write(path.join(name), "").unwrap();
        }
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn load(&self, toml: &str, env: &[(&str, &str)]) -> Result<Config, ConfigFaults> {
        fs::write(self.path("pgsluice.toml"), toml).unwrap();
        let env = env
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()));
        load(&self.path("pgsluice.toml"), env)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn defaults(folder: &Path) -> Config {
    Config {
        listen: Listen {
            addresses: vec!["127.0.0.1:6432".parse().unwrap()],
            unix_socket_dir: None,
            unix_socket_mode: 0o777,
            tls: None,
            require_tls: false,
            login_timeout: Duration::from_secs(15),
            keepalive: Duration::from_secs(60),
        },
        auth: Auth {
            method: AuthMethod::ScramSha256,
            trust: vec![],
        },
        target: Target {
            name: "primary".into(),
            host: None,
            port: 5432,
            tls: TargetTls {
                mode: SslMode::Prefer,
                ca_file: None,
                client: None,
            },
            connect_timeout: Duration::from_secs(10),
            keepalive: Duration::from_secs(60),
        },
        pool: Pool {
            mode: PoolMode::Transaction,
            max_connections: MaxConnections::Percent(100),
            max_idle_connections_percent: 50,
            connection_borrow_timeout: Duration::from_secs(120),
            idle_client_timeout: Duration::from_secs(1800),
            idle_in_transaction_timeout: Duration::ZERO,
            query_timeout: Duration::ZERO,
            max_connection_lifetime: Duration::from_secs(86_400),
            max_prepared_statements: 500,
            session_pinning_filters: vec![],
            init_query: None,
        },
        pool_rules: vec![],
        limits: Limits {
            max_clients: 10_000,
            max_clients_per_user: None,
            max_clients_per_database: None,
            max_clients_per_address: None,
            max_logins_in_progress: 10_000,
            max_logins_in_progress_per_address: None,
        },
        secrets: Secrets {
            file: folder.join("secrets.json"),
        },
        admin: Admin {
            address: Some("127.0.0.1:9432".parse().unwrap()),
        },
        log: Log {
            level: "info".into(),
            format: LogFormat::Text,
        },
        run: Run {
            worker_threads: 0,
            drain_timeout: Duration::from_secs(30),
        },
    }
}

const FULL: &str = r#"
[listen]
addresses = ["0.0.0.0:6432", "[::]:6432"]
unix_socket_dir = "."
unix_socket_mode = "0770"
tls_certificate_file = "a.crt"
tls_private_key_file = "a.key"
require_tls = true
login_timeout = "500ms"
keepalive = 0
[auth]
method = "md5"
trust = ["monitor"]
[target]
name = "db-1"
host = "db.example.org"
port = 5433
tls = "verify-full"
tls_ca_file = "ca.crt"
tls_certificate_file = "a.crt"
tls_private_key_file = "a.key"
connect_timeout = "5s"
keepalive = "2m"
[pool]
mode = "session"
max_connections = 20
max_idle_connections_percent = 0
connection_borrow_timeout = 300
idle_client_timeout = "8h"
idle_in_transaction_timeout = 60
query_timeout = "5m"
max_connection_lifetime = "1h"
max_prepared_statements = 7
session_pinning_filters = ["listen", "temp_object"]
init_query = "SET a.b = '1'; SET c.d = '2'"
[[pool.rules]]
database = "x"
mode = "statement"
[[pool.rules]]
user = "y"
max_connections = 3
[limits]
max_clients = 1
max_clients_per_user = 2
max_clients_per_database = 3
max_clients_per_address = 4
max_logins_in_progress = 5
max_logins_in_progress_per_address = 6
[secrets]
file = "secrets.json"
[admin]
address = "off"
[log]
level = "info,pgsluice::pool=debug"
format = "json"
[run]
worker_threads = 2
drain_timeout = "1m"
"#;

#[test]
fn an_empty_file_means_the_defaults() {
    let folder = Folder::new();
    assert_eq!(folder.load("", &[]).unwrap(), defaults(&folder.0));
}

#[test]
fn every_key_reaches_its_field() {
    let folder = Folder::new();
    let pair = || ServerTls {
        certificate_file: folder.path("a.crt"),
        private_key_file: folder.path("a.key"),
    };
    let expected = Config {
        listen: Listen {
            addresses: vec![
                "0.0.0.0:6432".parse().unwrap(),
                "[::]:6432".parse().unwrap(),
            ],
            unix_socket_dir: Some(folder.path(".")),
            unix_socket_mode: 0o770,
            tls: Some(pair()),
            require_tls: true,
            login_timeout: Duration::from_millis(500),
            keepalive: Duration::ZERO,
        },
        auth: Auth {
            method: AuthMethod::Md5,
            trust: vec!["monitor".into()],
        },
        target: Target {
            name: "db-1".into(),
            host: Some("db.example.org".into()),
            port: 5433,
            tls: TargetTls {
                mode: SslMode::VerifyFull,
                ca_file: Some(folder.path("ca.crt")),
                client: Some(pair()),
            },
            connect_timeout: Duration::from_secs(5),
            keepalive: Duration::from_secs(120),
        },
        pool: Pool {
            mode: PoolMode::Session,
            max_connections: MaxConnections::Count(20),
            max_idle_connections_percent: 0,
            connection_borrow_timeout: Duration::from_secs(300),
            idle_client_timeout: Duration::from_secs(8 * 3600),
            idle_in_transaction_timeout: Duration::from_secs(60),
            query_timeout: Duration::from_secs(300),
            max_connection_lifetime: Duration::from_secs(3600),
            max_prepared_statements: 7,
            session_pinning_filters: vec!["listen", "temp_object"],
            init_query: Some("SET a.b = '1'; SET c.d = '2'".into()),
        },
        pool_rules: vec![
            PoolRule {
                database: Some("x".into()),
                user: None,
                mode: Some(PoolMode::Statement),
                max_connections: None,
            },
            PoolRule {
                database: None,
                user: Some("y".into()),
                mode: None,
                max_connections: Some(3),
            },
        ],
        limits: Limits {
            max_clients: 1,
            max_clients_per_user: Some(2),
            max_clients_per_database: Some(3),
            max_clients_per_address: Some(4),
            max_logins_in_progress: 5,
            max_logins_in_progress_per_address: Some(6),
        },
        secrets: Secrets {
            file: folder.path("secrets.json"),
        },
        admin: Admin { address: None },
        log: Log {
            level: "info,pgsluice::pool=debug".into(),
            format: LogFormat::Json,
        },
        run: Run {
            worker_threads: 2,
            drain_timeout: Duration::from_secs(60),
        },
    };
    assert_eq!(folder.load(FULL, &[]).unwrap(), expected);
}

#[test]
fn the_environment_wins_over_the_file() {
    let folder = Folder::new();
    let env = [
        ("PGSLUICE__POOL__MODE", "statement"),
        ("PGSLUICE__POOL__MAX_CONNECTIONS", "7"),
        (
            "PGSLUICE__POOL__RULES",
            r#"[{ user = "env", mode = "session" }]"#,
        ),
        ("PGSLUICE__TARGET__NAME", "5432"),
        ("PGSLUICE__TARGET__HOST", "\"quoted\""),
        ("PGSLUICE__AUTH__TRUST", r#"["a", "b"]"#),
        ("PGSLUICE__LISTEN__LOGIN_TIMEOUT", "3s"),
        ("PGSLUICE__LISTEN__KEEPALIVE", "4"),
        ("PGSLUICE__ADMIN__ADDRESS", ""),
        ("PGSLUICE_PORT", "tcp://10.0.0.1:6432"),
    ];
    let config = folder.load(FULL, &env).unwrap();
    assert_eq!(config.pool.mode, PoolMode::Statement);
    assert_eq!(config.pool.max_connections, MaxConnections::Count(7));
    assert_eq!(config.pool_rules.len(), 1);
    assert_eq!(config.pool_settings("any", "env").mode, PoolMode::Session);
    assert_eq!(config.target.name, "5432");
    assert_eq!(config.target.host.as_deref(), Some("quoted"));
    assert_eq!(config.auth.trust, ["a", "b"]);
    assert_eq!(config.listen.login_timeout, Duration::from_secs(3));
    assert_eq!(config.listen.keepalive, Duration::from_secs(4));
    assert_eq!(config.admin.address, None);
}

/// A file, an environment, and the beginning of every fault line in order.
type FaultCase = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static [&'static str],
);

const FAULTS: &[FaultCase] = &[
    (
        "[listen]\naddresses = ['localhost:6432', '127.0.0.1:6432', 5]\nunix_socket_mode = 777\n\
         require_tls = true\nlogin_timeout = '0s'\nspeed = 1\n\
         [pool]\nmode = 'transactions'\nmax_connections = 0\nmax_connections_percent = 101\n\
         connection_borrow_timeout = 301\nidle_client_timeout = 0\n\
         [log]\nlevel = 'inof'\n[nonsense]\nx = 1\n",
        &[
            ("PGSLUICE__POOL__MOOD", "x"),
            ("PGSLUICE__RUN__DRAIN_TIMEOUT", "30"),
            ("PGSLUICE__X", "1"),
        ],
        &[
            "PGSLUICE__X: is not a key",
            "listen.addresses[0]: is not an address",
            "listen.addresses[2]: is a whole number; write a string",
            "listen.unix_socket_mode: is a whole number; write octal digits",
            "listen.login_timeout: is out of range; use 100ms to 600s",
            "listen.require_tls: is true without a certificate",
            "listen.speed: unknown key; known in listen are: ",
            "pool.mode: is none of the choices; use one of: transaction, session, statement",
            "pool.max_connections: is given beside max_connections_percent",
            "pool.max_connections_percent: is 101; use 1 to 100",
            "pool.max_connections: is 0; use 1 to 262143",
            "pool.connection_borrow_timeout: is out of range; use 0s to 300s",
            "pool.idle_client_timeout: is out of range; use 1s to 8h",
            "PGSLUICE__POOL__MOOD: unknown key",
            "log.level: is not a log filter",
            "nonsense: unknown section",
        ],
    ),
    (
        "[listen]\ntls_certificate_file = 'missing.crt'\n[secrets]\nfile = 'missing.json'\n\
         [target]\ntls = 'verify-full'\ntls_private_key_file = '.'\nport = 70000\n\
         [auth]\nmethod = 'cleartext'\ntrust = ['a', '*', '']\n",
        &[],
        &[
            "listen.tls_private_key_file: is missing; tls_certificate_file needs it",
            "listen.tls_certificate_file: FOLDER/missing.crt can't be read",
            "auth.trust[1]: holds a wildcard",
            "auth.trust[2]: is empty",
            "auth.method: is cleartext without TLS",
            "target.port: is 70000",
            "target.tls_certificate_file: is missing; tls_private_key_file needs it",
            "target.tls_private_key_file: FOLDER/. can't be read",
            "target.tls_ca_file: is missing; verify-ca",
            "target.port: counts only beside host",
            "secrets.file: FOLDER/missing.json can't be read",
        ],
    ),
    (
        "[target]\nhost = '/run/postgresql'\ntls = 'require'\ntls_ca_file = 'ca.crt'\nname = 'a b'\n\
         [pool]\n[[pool.rules]]\nmode = 'session'\n[[pool.rules]]\nuser = 'a'\n[[pool.rules]]\n\
         user = 'a'\ndatabase = 'b'\nmod = 'x'\n",
        &[],
        &[
            "target.name: is not a plain name",
            "target.tls_ca_file: would not be used",
            "target.tls: asks for TLS on a Unix socket",
            "pool.rules[0]: names neither",
            "pool.rules[2]: is never reached",
            "pool.rules[2].mod: unknown key; known in pool.rules[2] are: database, user, mode",
        ],
    ),
    (
        "listen = 5\n[admin]\naddress = '127.0.0.1:6432'\n[limits]\nmax_clients = 'many'\n[pool]\nrules = 1\n",
        &[
            ("PGSLUICE__LIMITS__MAX_CLIENTS_PER_USER", "lots"),
            ("PGSLUICE__NOPE__KEY", "x"),
        ],
        &[
            "listen: is a whole number; write a section",
            "pool.rules: is a whole number; write a list",
            "limits.max_clients: is a string; write a whole number",
            "limits.max_clients_per_user (PGSLUICE__LIMITS__MAX_CLIENTS_PER_USER): is a string; write a whole",
            "admin.address: is also in listen.addresses",
            "PGSLUICE__NOPE__KEY: unknown section",
        ],
    ),
    (
        "[listen]\naddresses = []\nunix_socket_dir = 'no/such/folder'\n[target]\ntls = 'full'\ntls_ca_file = 'ca.crt'\n",
        &[],
        &[
            "listen.addresses: is empty",
            "listen.unix_socket_dir: FOLDER/no/such/folder is not a folder",
            "target.tls: is none of the choices",
        ],
    ),
    (
        "[pool]\nsession_pinning_filters = ['listen', 'EXCLUDE_VARIABLE_SETS', 'session_mode']\n",
        &[],
        &[
            "pool.session_pinning_filters[1]: is none of the choices; use one of: settings, named_statement,",
            "pool.session_pinning_filters[2]: is none of the choices",
        ],
    ),
];

#[test]
fn every_fault_is_told_at_once_with_its_key_path() {
    for (toml, env, expected) in FAULTS {
        let folder = Folder::new();
        let told = folder.load(toml, env).unwrap_err().to_string();
        let told = told.replace(folder.0.to_str().unwrap(), "FOLDER");
        let lines: Vec<_> = told.lines().collect();
        assert_eq!(lines.len(), expected.len(), "{told}");
        for (line, beginning) in lines.iter().zip(*expected) {
            assert!(
                line.starts_with(beginning),
                "{line:?} should begin with {beginning:?}"
            );
        }
    }
}

#[test]
fn a_value_under_a_wrong_key_is_not_shown() {
    let cases = [
        "[secrets]\npassword = 'hunter2'",
        "[auth]\nmethod = 'hunter2'",
        "[log]\nlevel = 'hunter2'",
        "[auth]\ntrust = 'hunter2'",
        "[listen]\naddresses = ['hunter2']",
        "[secrets]\npassword = 'hunter2",
        "[secrets]\npassword = hunter2",
    ];
    for toml in cases {
        let told = Folder::new().load(toml, &[]).unwrap_err().to_string();
        assert!(!told.contains("hunter2"), "{told}");
    }
}

#[test]
fn bad_toml_and_missing_files_are_told_by_place() {
    let folder = Folder::new();
    let told = folder
        .load("[listen]\n\n  addresses = [,]\n", &[])
        .unwrap_err()
        .to_string();
    assert!(
        told.contains("pgsluice.toml: is not TOML at line 3, column 1"),
        "{told}"
    );
    let told = load(&folder.path("absent.toml"), std::iter::empty())
        .unwrap_err()
        .to_string();
    assert!(
        told.contains("absent.toml: can't be read (No such file"),
        "{told}"
    );
}

#[test]
fn log_filters() {
    let cases = [
        ("info", true),
        ("INFO", true),
        ("info,pgsluice::pool=debug", true),
        ("pgsluice[session{client=1}]=debug", true),
        ("inof", false),
        ("info,pgsluice", false),
        ("pgsluice=loud", false),
        ("info,,", false),
    ];
    for (filter, good) in cases {
        assert_eq!(check_filter(filter).is_ok(), good, "{filter}");
    }
}

const REFERENCE: &str = include_str!("../../../config/pgsluice.toml");

/// Keys the reference shows by example, because they have no default.
const WITHOUT_DEFAULT: &[&str] = &[
    "unix_socket_dir",
    "tls_certificate_file",
    "tls_private_key_file",
    "host",
    "port",
    "tls_ca_file",
    "max_connections",
    "init_query",
    "[[pool.rules]]",
    "database",
    "user",
    "max_clients_per_user",
    "max_clients_per_database",
    "max_clients_per_address",
    "max_logins_in_progress_per_address",
];

#[test]
fn the_reference_configuration_shows_the_defaults() {
    let uncommented: String = REFERENCE
        .lines()
        .take_while(|line| *line != "#[[pool.rules]]")
        .chain(REFERENCE.lines().skip_while(|line| *line != "[limits]"))
        .map(|line| match line.strip_prefix('#') {
            Some(code) if code.starts_with(|c: char| c.is_ascii_lowercase()) => code,
            _ => line,
        })
        .filter(|line| !WITHOUT_DEFAULT.contains(&line.split(" = ").next().unwrap()))
        .map(|line| format!("{line}\n"))
        .collect();
    let folder = Folder::new();
    assert!(uncommented.contains("\ndrain_timeout = "));
    assert_eq!(folder.load(&uncommented, &[]).unwrap(), defaults(&folder.0));
    assert_eq!(folder.load(REFERENCE, &[]).unwrap(), defaults(&folder.0));
}

#[test]
fn every_key_is_in_the_reference_and_in_the_manual() {
    let manual = include_str!("../../../docs/CONFIGURATION.md");
    let context = file::Context::new(Path::new("pgsluice.toml"), vec![]);
    let table = "[[pool.rules]]\nuser = 'a'".parse().unwrap();
    let (overrides, _) = env::collect(std::iter::empty());
    config(file::Document::new(&context, table, overrides));
    let asked = context.asked();
    assert!(asked.len() > 40, "{asked:?}");
    for path in asked.iter().filter(|path| *path != "pool.rules") {
        let (section, key) = path.rsplit_once('.').unwrap();
        let heading = match section {
            "pool.rules[0]" => "[[pool.rules]]".to_string(),
            _ => format!("[{section}]"),
        };
        let shown = part(REFERENCE, &heading, "\n[");
        assert!(
            shown.contains(&format!("\n#{key} = ")),
            "{path} in the reference"
        );
        let shown = part(manual, &format!("### `{heading}`\n"), "\n### ");
        assert!(
            shown.contains(&format!("\n| `{key}` |")),
            "{path} in the manual"
        );
    }
}

/// The text between a heading and the next one.
fn part<'t>(text: &'t str, heading: &str, next: &str) -> &'t str {
    let after = text
        .split_once(heading)
        .unwrap_or_else(|| panic!("{heading} is missing"))
        .1;
    after.split_once(next).map_or(after, |(part, _)| part)
}
