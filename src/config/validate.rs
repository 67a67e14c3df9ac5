//! The configuration as written → as meant: types, limits, defaults, and what must fit together.
//!
//! A faulty key gets its default and a fault, so that the walk reaches every key; the `Config` built this way is
//! thrown away if there was any fault.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::file::{Document, Section};
use super::values;
use super::{
    Admin, Auth, AuthMethod, Config, Limits, Listen, Log, LogFormat, MaxConnections, Pool,
    PoolMode, PoolRule, Run, Secrets, ServerTls, SslMode, Target, TargetTls,
};

const CERTIFICATE_KEY: &str = "tls_certificate_file";
const PRIVATE_KEY_KEY: &str = "tls_private_key_file";

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LISTEN_ADDRESS: SocketAddr = SocketAddr::new(LOCALHOST, 6432);
/// As PostgreSQL's own `unix_socket_permissions`: who may log in is decided by authentication.
const UNIX_SOCKET_MODE: u32 = 0o777;
const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);
const KEEPALIVE: Duration = Duration::from_secs(60);
const TARGET_NAME: &str = "primary";
const TARGET_PORT: u16 = 5432;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// This and the next four are RDS Proxy's defaults.
const MAX_CONNECTIONS_PERCENT: u8 = 100;
const MAX_IDLE_CONNECTIONS_PERCENT: u8 = 50;
const CONNECTION_BORROW_TIMEOUT: Duration = Duration::from_secs(120);
const IDLE_CLIENT_TIMEOUT: Duration = Duration::from_secs(1800);
const MAX_CONNECTION_LIFETIME: Duration = hours(24);
const MAX_CLIENTS: u32 = 10_000;
/// Plans cost the server some 10 KB each and more: enough for a large application, little enough for a server.
const MAX_PREPARED_STATEMENTS: u32 = 500;
/// As many as may be clients: a surge of real logins must fit.
const MAX_LOGINS_IN_PROGRESS: u32 = 10_000;
const SECRETS_FILE: &str = "secrets.json";
const ADMIN_ADDRESS: SocketAddr = SocketAddr::new(LOCALHOST, 9432);
const LOG_LEVEL: &str = "info";
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Deadlines of logins: long enough to succeed, short enough to matter.
const LOGIN_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(600);
/// Beside zero. Linux refuses a longer TCP_KEEPIDLE, and counts whole seconds.
const KEEPALIVE_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(32_767);
/// PostgreSQL's `max_connections` goes to 262,143.
const CONNECTIONS_RANGE: std::ops::RangeInclusive<i64> = 1..=262_143;
const CLIENTS_RANGE: std::ops::RangeInclusive<i64> = 1..=1_000_000;
/// `sockaddr_un` holds 108 bytes, the last one NUL.
const UNIX_SOCKET_PATH_BYTES_MAX: usize = 107;

const MODES: &[(&str, PoolMode)] = &[
    ("transaction", PoolMode::Transaction),
    ("session", PoolMode::Session),
    ("statement", PoolMode::Statement),
];
const METHODS: &[(&str, AuthMethod)] = &[
    ("scram-sha-256", AuthMethod::ScramSha256),
    ("md5", AuthMethod::Md5),
    ("cleartext", AuthMethod::Cleartext),
];
const SSL_MODES: &[(&str, SslMode)] = &[
    ("disable", SslMode::Disable),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];
/// The reasons of `session::pin` but `session_mode`, which `pool.mode` is for; a test there compares them.
pub(crate) const PINNING_FILTERS: &[(&str, &str)] = &[
    ("settings", "settings"),
    ("named_statement", "named_statement"),
    ("unnamed_statement", "unnamed_statement"),
    ("sql_prepare", "sql_prepare"),
    ("temp_object", "temp_object"),
    ("hold_cursor", "hold_cursor"),
    ("listen", "listen"),
    ("advisory_lock", "advisory_lock"),
    ("load", "load"),
    ("function_call", "function_call"),
    ("sequence", "sequence"),
];
const LOG_FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];

/// The whole configuration; faults go to the document's context.
pub(super) fn config(mut document: Document<'_>) -> Config {
    let listen = listen(document.section("listen"));
    let auth = auth(document.section("auth"), &listen);
    let target = target(document.section("target"));
    let (pool, pool_rules) = pool(document.section("pool"));
    let config = Config {
        auth,
        target,
        pool,
        pool_rules,
        limits: limits(document.section("limits")),
        secrets: secrets(document.section("secrets")),
        admin: admin(document.section("admin"), &listen),
        log: log(document.section("log")),
        run: run(document.section("run")),
        listen,
    };
    document.finish();
    config
}

fn listen(mut section: Section<'_>) -> Listen {
    let gives_tls = section.gives(CERTIFICATE_KEY) || section.gives(PRIVATE_KEY_KEY);
    let addresses = addresses(&mut section);
    let listen = Listen {
        unix_socket_dir: unix_socket_dir(&mut section, &addresses),
        addresses,
        unix_socket_mode: section.or(
            "unix_socket_mode",
            UNIX_SOCKET_MODE,
            values::permission_bits,
        ),
        require_tls: section.or("require_tls", false, values::flag),
        tls: certificate_pair(&mut section),
        login_timeout: section.or(
            "login_timeout",
            LOGIN_TIMEOUT,
            values::duration(LOGIN_RANGE),
        ),
        keepalive: section.or(
            "keepalive",
            KEEPALIVE,
            values::duration_or_off(KEEPALIVE_RANGE),
        ),
    };
    if listen.require_tls && !gives_tls {
        section.fault(
            "require_tls",
            format!("is true without a certificate; set {CERTIFICATE_KEY} and {PRIVATE_KEY_KEY}"),
        );
    }
    section.finish();
    listen
}

fn addresses(section: &mut Section<'_>) -> Vec<SocketAddr> {
    let read = values::list(values::socket_address);
    let addresses = section.or("addresses", vec![LISTEN_ADDRESS], read);
    if addresses.is_empty() {
        section.fault(
            "addresses",
            "is empty; name at least one (it also numbers the Unix socket)",
        );
    }
    for (index, address) in addresses.iter().enumerate() {
        // Port 0 is another free port each time.
        if address.port() != 0 && addresses.iter().take(index).any(|other| other == address) {
            section.fault("addresses", format!("names {address} twice; remove one"));
        }
    }
    addresses
}

fn unix_socket_dir(section: &mut Section<'_>, addresses: &[SocketAddr]) -> Option<PathBuf> {
    const KEY: &str = "unix_socket_dir";
    let dir = section.path(KEY)?;
    let port = addresses.first().map_or(0, SocketAddr::port);
    if dir.join(format!(".s.PGSQL.{port}")).as_os_str().len() > UNIX_SOCKET_PATH_BYTES_MAX {
        let text =
            format!("makes a socket path over {UNIX_SOCKET_PATH_BYTES_MAX} bytes; shorten it");
        section.fault(KEY, text);
    }
    if !dir.is_dir() {
        section.fault(KEY, format!("{} is not a folder; create it", dir.display()));
    }
    Some(dir)
}

/// Both files or neither.
fn certificate_pair(section: &mut Section<'_>) -> Option<ServerTls> {
    for (given, missing) in [
        (CERTIFICATE_KEY, PRIVATE_KEY_KEY),
        (PRIVATE_KEY_KEY, CERTIFICATE_KEY),
    ] {
        if section.gives(given) && !section.gives(missing) {
            section.fault(missing, format!("is missing; {given} needs it"));
        }
    }
    let (certificate, key) = (section.file(CERTIFICATE_KEY), section.file(PRIVATE_KEY_KEY));
    Some(ServerTls {
        certificate_file: certificate?,
        private_key_file: key?,
    })
}

fn auth(mut section: Section<'_>, listen: &Listen) -> Auth {
    let auth = Auth {
        method: section.or("method", AuthMethod::ScramSha256, values::one_of(METHODS)),
        trust: section.or("trust", Vec::new(), values::list(values::role_by_name)),
    };
    let encrypted = listen.tls.is_some() || listen.unix_socket_dir.is_some();
    if auth.method == AuthMethod::Cleartext && !encrypted {
        let text =
            format!("is cleartext without TLS; set listen.{CERTIFICATE_KEY} or use scram-sha-256");
        section.fault("method", text);
    }
    section.finish();
    auth
}

fn target(mut section: Section<'_>) -> Target {
    let gives_port = section.gives("port");
    let gives_host = section.gives("host");
    let target = Target {
        name: section.or("name", TARGET_NAME.into(), values::label),
        host: section.optional("host", values::text),
        port: section.or("port", TARGET_PORT, values::whole(1..=65_535)),
        tls: target_tls(&mut section),
        connect_timeout: section.or(
            "connect_timeout",
            CONNECT_TIMEOUT,
            values::duration(LOGIN_RANGE),
        ),
        keepalive: section.or(
            "keepalive",
            KEEPALIVE,
            values::duration_or_off(KEEPALIVE_RANGE),
        ),
    };
    if gives_port && !gives_host {
        section.fault(
            "port",
            "counts only beside host; set target.host or remove it",
        );
    }
    let on_unix_socket = target
        .host
        .as_deref()
        .is_some_and(|host| host.starts_with('/'));
    if on_unix_socket && !matches!(target.tls.mode, SslMode::Disable | SslMode::Prefer) {
        section.fault(
            "tls",
            "asks for TLS on a Unix socket, which has none; use \"disable\"",
        );
    }
    section.finish();
    target
}

fn target_tls(section: &mut Section<'_>) -> TargetTls {
    const CA_KEY: &str = "tls_ca_file";
    let gives_ca = section.gives(CA_KEY);
    let gives_client = section.gives(CERTIFICATE_KEY);
    // A mode that can't be read says nothing about the other keys.
    let mode_written = section.gives("tls");
    let mode_read = section.optional("tls", values::one_of(SSL_MODES));
    let mode = mode_read.unwrap_or(SslMode::Prefer);
    let tls = TargetTls {
        mode,
        ca_file: section.file(CA_KEY),
        client: certificate_pair(section),
    };
    if mode_written && mode_read.is_none() {
        return tls;
    }
    let verifies = matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull);
    if verifies && !gives_ca {
        section.fault(
            CA_KEY,
            "is missing; verify-ca and verify-full need the certificate authority",
        );
    }
    if !verifies && gives_ca {
        section.fault(
            CA_KEY,
            "would not be used; set target.tls to verify-ca or verify-full",
        );
    }
    if mode == SslMode::Disable && gives_client {
        section.fault(
            CERTIFICATE_KEY,
            "would not be used; target.tls is \"disable\"",
        );
    }
    tls
}

fn pool(mut section: Section<'_>) -> (Pool, Vec<PoolRule>) {
    let no_limit_or = values::duration(Duration::ZERO..=hours(24));
    let pool = Pool {
        mode: section.or("mode", PoolMode::Transaction, values::one_of(MODES)),
        max_connections: max_connections(&mut section),
        max_idle_connections_percent: section.or(
            "max_idle_connections_percent",
            MAX_IDLE_CONNECTIONS_PERCENT,
            values::whole(0..=100),
        ),
        connection_borrow_timeout: section.or(
            "connection_borrow_timeout",
            CONNECTION_BORROW_TIMEOUT,
            values::duration(Duration::ZERO..=Duration::from_secs(300)),
        ),
        idle_client_timeout: section.or(
            "idle_client_timeout",
            IDLE_CLIENT_TIMEOUT,
            values::duration(Duration::from_secs(1)..=hours(8)),
        ),
        idle_in_transaction_timeout: section.or(
            "idle_in_transaction_timeout",
            Duration::ZERO,
            &no_limit_or,
        ),
        query_timeout: section.or("query_timeout", Duration::ZERO, &no_limit_or),
        max_connection_lifetime: section.or(
            "max_connection_lifetime",
            MAX_CONNECTION_LIFETIME,
            values::duration(Duration::from_secs(1)..=hours(365 * 24)),
        ),
        max_prepared_statements: section.or(
            "max_prepared_statements",
            MAX_PREPARED_STATEMENTS,
            values::whole(0..=100_000),
        ),
        session_pinning_filters: section.or(
            "session_pinning_filters",
            Vec::new(),
            values::list(values::one_of(PINNING_FILTERS)),
        ),
        init_query: section.optional("init_query", values::text),
    };
    let rules = pool_rules(&mut section);
    section.finish();
    (pool, rules)
}

fn max_connections(section: &mut Section<'_>) -> MaxConnections {
    const PERCENT_KEY: &str = "max_connections_percent";
    const COUNT_KEY: &str = "max_connections";
    if section.gives(PERCENT_KEY) && section.gives(COUNT_KEY) {
        section.fault(
            COUNT_KEY,
            format!("is given beside {PERCENT_KEY}; keep one of them"),
        );
    }
    let percent = section.or(PERCENT_KEY, MAX_CONNECTIONS_PERCENT, values::whole(1..=100));
    let count = section.optional(COUNT_KEY, values::whole(CONNECTIONS_RANGE));
    count.map_or(MaxConnections::Percent(percent), MaxConnections::Count)
}

fn pool_rules(section: &mut Section<'_>) -> Vec<PoolRule> {
    let mut rules: Vec<PoolRule> = Vec::new();
    for mut table in section.tables("rules") {
        let gives_whom = table.gives("database") || table.gives("user");
        let rule = PoolRule {
            database: table.optional("database", values::text),
            user: table.optional("user", values::text),
            mode: table.optional("mode", values::one_of(MODES)),
            max_connections: table.optional("max_connections", values::whole(CONNECTIONS_RANGE)),
        };
        if !gives_whom {
            table.fault_of_all(
                "names neither database nor user; name one, or set the key in [pool]",
            );
        } else if rules.iter().any(|earlier| shadows(earlier, &rule)) {
            table.fault_of_all(
                "is never reached; an earlier rule matches all of it, move it up or remove it",
            );
        }
        table.finish();
        rules.push(rule);
    }
    rules
}

/// Does `earlier` match everything `later` matches?
fn shadows(earlier: &PoolRule, later: &PoolRule) -> bool {
    let covers = |wide: &Option<String>, narrow: &Option<String>| wide.is_none() || wide == narrow;
    let unrestricted = earlier.database.is_none() && earlier.user.is_none();
    !unrestricted
        && covers(&earlier.database, &later.database)
        && covers(&earlier.user, &later.user)
}

fn limits(mut section: Section<'_>) -> Limits {
    let clients = values::whole(CLIENTS_RANGE);
    let limits = Limits {
        max_clients: section.or("max_clients", MAX_CLIENTS, &clients),
        max_clients_per_user: section.optional("max_clients_per_user", &clients),
        max_clients_per_database: section.optional("max_clients_per_database", &clients),
        max_clients_per_address: section.optional("max_clients_per_address", &clients),
        max_logins_in_progress: section.or(
            "max_logins_in_progress",
            MAX_LOGINS_IN_PROGRESS,
            &clients,
        ),
        max_logins_in_progress_per_address: section
            .optional("max_logins_in_progress_per_address", &clients),
    };
    section.finish();
    limits
}

fn secrets(mut section: Section<'_>) -> Secrets {
    let secrets = Secrets {
        file: section.file_or("file", SECRETS_FILE),
    };
    section.finish();
    secrets
}

fn admin(mut section: Section<'_>, listen: &Listen) -> Admin {
    let read = values::socket_address_or_off;
    let address = section.or("address", Some(ADMIN_ADDRESS), read);
    if let Some(address) = address.filter(|address| address.port() != 0)
        && listen.addresses.contains(&address)
    {
        section.fault(
            "address",
            format!("is also in listen.addresses ({address}); use another port"),
        );
    }
    section.finish();
    Admin { address }
}

fn log(mut section: Section<'_>) -> Log {
    let level = section.or("level", LOG_LEVEL.into(), values::text);
    if let Err(text) = check_filter(&level) {
        section.fault("level", text);
    }
    let format = section.or("format", LogFormat::Text, values::one_of(LOG_FORMATS));
    section.finish();
    Log { level, format }
}

/// tracing takes a misspelt level for the name of a module and then logs nothing else; refuse that here.
fn check_filter(filter: &str) -> Result<(), &'static str> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    const TEXT: &str = "is not a log filter; use off, error, warn, info, debug or trace, or a list such as \
                        info,pgsluice::pool=debug";
    let bare_word = |part: &str| !part.contains(['=', '[']);
    let misspelt = |part: &str| bare_word(part) && !LEVELS.contains(&part.to_lowercase().as_str());
    if filter.split(',').map(str::trim).any(misspelt) || EnvFilter::try_new(filter).is_err() {
        return Err(TEXT);
    }
    Ok(())
}

fn run(mut section: Section<'_>) -> Run {
    let run = Run {
        worker_threads: section.or("worker_threads", 0, values::whole(0..=1024)),
        drain_timeout: section.or(
            "drain_timeout",
            DRAIN_TIMEOUT,
            values::duration(Duration::ZERO..=hours(24)),
        ),
    };
    section.finish();
    run
}

const fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * 60 * 60)
}

#[cfg(test)]
mod tests;
