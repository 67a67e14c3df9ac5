//! The command line: what is wrong with a configuration is told at once, with key paths, and exit code 64.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use tempfile::TempDir;

const GOOD: &str = "[target]\nhost = \"127.0.0.1\"\n";
const SECRETS: &str = r#"{"username": "app", "password": "hunter2"}"#;

/// A folder with a configuration and a secrets file, both for their owner alone.
fn folder(config: &str, secrets: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [("pgsluice.toml", config), ("secrets.json", secrets)] {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }
    folder
}

fn pgsluice(command: &str, folder: &TempDir, environment: &[(&str, &str)]) -> Output {
    // A good configuration must not run on.
    Command::new("timeout")
        .args(["20", env!("CARGO_BIN_EXE_pgsluice"), command, "--config"])
        .arg(folder.path().join("pgsluice.toml"))
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

fn told(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!text.contains("hunter2"), "a password is shown: {text}");
    text
}

/// The key path at the beginning of every line.
fn keys(output: &Output) -> Vec<String> {
    let text = told(output);
    let keys = text
        .lines()
        .map(|line| line.split(": ").next().unwrap().to_owned());
    keys.collect()
}

#[test]
fn every_fault_is_told_with_its_key_path() {
    let config = r#"
        colour = "blue"
        [listen]
        addresses = ["nowhere"]
        unix_socket_mode = "999"
        login_timeout = "1ms"
        require_tls = true
        [auth]
        method = "telepathy"
        [target]
        port = 5432
        tls = "verify-full"
        [pool]
        mode = "fast"
        max_connections = 0
        max_idle_connections_percent = 101
        connection_borrow_timeout = "10m"
        idle_client_timout = 5
        [limits]
        max_clients = "many"
        [secrets]
        file = "elsewhere.json"
        [log]
        format = "xml"
        [run]
        drain_timeout = -1
    "#;
    let output = pgsluice("check-config", &folder(config, SECRETS), &[]);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    let keys = keys(&output);
    for key in [
        "colour",
        "listen.addresses",
        "listen.unix_socket_mode",
        "listen.login_timeout",
        "listen.require_tls",
        "auth.method",
        "target.port",
        "target.tls_ca_file",
        "pool.mode",
        "pool.max_connections",
        "pool.max_idle_connections_percent",
        "pool.connection_borrow_timeout",
        "pool.idle_client_timout",
        "limits.max_clients",
        "secrets.file",
        "log.format",
        "run.drain_timeout",
    ] {
        let count = keys.iter().filter(|told| told.starts_with(key)).count();
        assert!(count > 0, "{key} is not told among {}", told(&output));
    }
}

#[test]
fn run_refuses_what_check_config_refuses() {
    let folder = folder(
        "[pool]\nmode = \"fast\"\n[log]\nformat = \"xml\"\n[target]\nhost = \"127.0.0.1\"\n",
        SECRETS,
    );
    let (check, run) = (
        pgsluice("check-config", &folder, &[]),
        pgsluice("run", &folder, &[]),
    );
    assert_eq!(
        (check.status.code(), run.status.code()),
        (Some(64), Some(64))
    );
    assert_eq!(told(&check), told(&run));
    assert_eq!(keys(&run), ["pool.mode", "log.format"]);
}

#[test]
fn a_good_configuration_is_summed_up_without_secrets() {
    let output = pgsluice("check-config", &folder(GOOD, SECRETS), &[]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("configuration ok\n"), "{text}");
    assert!(
        text.contains("127.0.0.1:5432") && !text.contains("hunter2"),
        "{text}"
    );
}

#[test]
fn version_and_wrong_arguments() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgsluice"));
        command.args(arguments).output().unwrap()
    };
    let version = run(&["--version"]);
    assert!(version.status.success());
    let expected = format!("pgsluice {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8(version.stdout).unwrap(), expected);
    for wrong in [&["run"][..], &["walk"], &[], &["run", "--config"]] {
        let output = run(wrong);
        assert!(!output.status.success(), "{wrong:?}");
        assert!(!output.stderr.is_empty(), "{wrong:?}");
    }
}

#[test]
fn a_configuration_that_is_not_there_or_no_toml() {
    let empty = tempfile::tempdir().unwrap();
    let output = pgsluice("run", &empty, &[]);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(told(&output).contains("pgsluice.toml"), "{output:?}");
    let output = pgsluice("run", &folder("[pool\nmode = 1", SECRETS), &[]);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(told(&output).contains("line 1"), "{output:?}");
}

#[test]
fn a_secrets_file_must_be_there_be_closed_to_others_and_be_one() {
    let missing = folder(GOOD, SECRETS);
    fs::remove_file(missing.path().join("secrets.json")).unwrap();
    let open = folder(GOOD, SECRETS);
    let readable = Permissions::from_mode(0o644);
    fs::set_permissions(open.path().join("secrets.json"), readable).unwrap();
    let cases = [
        (missing, "secrets.json"),
        (open, "chmod 600"),
        (
            folder(GOOD, r#"{"username": "app", "password": "hunter2"#),
            "not JSON",
        ),
        (folder(GOOD, "[]"), "no secret"),
        (folder(GOOD, r#"[{"username": "app"}]"#), "password"),
        (
            folder(GOOD, r#"[{"username": "app", "password": 12345}]"#),
            "must be a string",
        ),
        (
            folder(GOOD, &format!("[{SECRETS}, {SECRETS}]")),
            "second one",
        ),
    ];
    for (folder, expected) in cases {
        for command in ["check-config", "run"] {
            let output = pgsluice(command, &folder, &[]);
            assert_eq!(output.status.code(), Some(64), "{expected}: {output:?}");
            assert_eq!(keys(&output), ["secrets.file"], "{expected}");
            assert!(told(&output).contains(expected), "{expected}: {output:?}");
        }
    }
}

#[test]
fn a_server_must_be_named_by_the_configuration_or_the_secrets() {
    let output = pgsluice("check-config", &folder("", SECRETS), &[]);
    assert_eq!(
        (output.status.code(), keys(&output)),
        (Some(64), vec!["target.host".into()])
    );
    let with_host =
        r#"{"username": "app", "password": "hunter2", "host": "db.example", "port": 5433}"#;
    let output = pgsluice("check-config", &folder("", with_host), &[]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("db.example:5433"));
    let two = r#"[{"username": "a", "password": "hunter2", "host": "x"},
                  {"username": "b", "password": "hunter2", "host": "y"}]"#;
    let output = pgsluice("check-config", &folder("", two), &[]);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(told(&output).contains("several servers"), "{output:?}");
}

#[test]
fn the_environment_wins_over_the_file() {
    let config = format!("{GOOD}[pool]\nmax_connections = 5\n");
    let folder = folder(&config, SECRETS);
    let with = |value| [("PGSLUICE__POOL__MAX_CONNECTIONS", value)];
    let output = pgsluice("check-config", &folder, &with("7"));
    assert!(output.status.success(), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("7 connections"),
        "{output:?}"
    );
    let output = pgsluice("check-config", &folder, &with("none"));
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(
        told(&output).contains("PGSLUICE__POOL__MAX_CONNECTIONS"),
        "{output:?}"
    );
    let output = pgsluice("check-config", &folder, &[("PGSLUICE__POOL__SIZE", "7")]);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(told(&output).contains("PGSLUICE__POOL__SIZE"), "{output:?}");
}
