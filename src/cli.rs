//! The command line: what was asked for. `main` turns it into a running proxy or an exit code.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Config, ConfigFault, ConfigFaults, MaxConnections};
use crate::secrets::SecretStore;
use crate::tls::accept::Acceptor;
use crate::tls::connect::Connector;

/// The exit code of a configuration that can't be used (`EX_USAGE` of sysexits.h).
pub const EXIT_BAD_CONFIGURATION: u8 = 64;

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "pgsluice", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy until it is told to stop.
    Run(ConfigArgument),
    /// Tell every fault of the configuration and of the secrets file; exit with 64 if there is one.
    CheckConfig(ConfigArgument),
}

/// Which configuration.
#[derive(Debug, Args)]
pub struct ConfigArgument {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Reads the process's arguments; on wrong ones, and for --help and --version, prints and exits.
pub fn parse() -> Cli {
    Cli::parse()
}

/// Configuration and secrets as `run` needs them, or every fault of both.
pub fn load(
    path: &Path,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<(Config, SecretStore), ConfigFaults> {
    let (config, mut faults) = config::inspect(path, environment)?;
    let in_certificates = faults_of_certificates(&config, &faults);
    faults.extend(in_certificates);
    // A secrets file that could not even be opened is among the faults already.
    let secrets = if faults
        .iter()
        .any(|fault| fault.key.starts_with("secrets.file"))
    {
        None
    } else {
        secrets(&config).map_err(|fault| faults.push(fault)).ok()
    };
    if let Some(secrets) = &secrets {
        faults.extend(trusted_without_secret(&config, secrets));
    }
    match (secrets, ConfigFaults::new(faults)) {
        (Some(secrets), None) => Ok((config, secrets)),
        (_, Some(faults)) => Err(faults),
        (None, None) => Err(ConfigFaults::one("secrets.file", "can't be read")),
    }
}

/// The secrets, which must name the server if the configuration does not.
fn secrets(config: &Config) -> Result<SecretStore, ConfigFault> {
    let fault = |key: &str, text: String| ConfigFault {
        key: key.into(),
        text,
    };
    let secrets = SecretStore::load(&config.secrets.file)
        .map_err(|error| fault("secrets.file", error.to_string()))?;
    if config.target.host.is_none() {
        let server = secrets
            .server()
            .map_err(|error| fault("target.host", error.to_string()))?;
        let missing = "is missing, and no secret names a host; set it here or in the secrets file";
        server.ok_or_else(|| fault("target.host", missing.into()))?;
    }
    Ok(secrets)
}

/// What is wrong inside the certificate files; not again where a key or its file is at fault already.
fn faults_of_certificates(config: &Config, told: &[ConfigFault]) -> Vec<ConfigFault> {
    let listen = config.listen.tls.as_ref().map(Acceptor::faults);
    let target = Connector::faults(&config.target.tls);
    let in_sections = [("listen", listen.unwrap_or_default()), ("target", target)];
    let mut faults = Vec::new();
    for (section, in_files) in in_sections {
        for (key, error) in in_files {
            let key = format!("{section}.{key}");
            if !told.iter().any(|fault| fault.key.starts_with(&key)) {
                let text = error.to_string();
                faults.push(ConfigFault { key, text });
            }
        }
    }
    faults
}

/// Roles that would be let in and then get no database connection.
fn trusted_without_secret(config: &Config, secrets: &SecretStore) -> Vec<ConfigFault> {
    let names = config.auth.trust.iter().enumerate();
    names
        .filter(|(_, name)| !secrets.knows(name))
        .map(|(index, _)| ConfigFault {
            key: format!("auth.trust[{index}]"),
            text: "is a role without a secret, which could not log in to the database; add it to \
                   the secrets file, or remove it here"
                .into(),
        })
        .collect()
}

/// The `check-config` command: a short summary, or every fault on standard error and exit code 64.
pub fn check_config(path: &Path) -> ExitCode {
    match load(path, config::process_environment()) {
        Ok((config, secrets)) => {
            println!("configuration ok\n{}", summary(&config, &secrets));
            ExitCode::SUCCESS
        }
        Err(faults) => report(&faults),
    }
}

/// Prints the faults on standard error; the exit code says so too.
pub fn report(faults: &ConfigFaults) -> ExitCode {
    tell(faults);
    ExitCode::from(EXIT_BAD_CONFIGURATION)
}

/// Says something on standard error. Where that is closed nobody hears it, and nothing else happens.
pub fn tell(what: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

fn summary(config: &Config, secrets: &SecretStore) -> String {
    let listen: Vec<_> = config
        .listen
        .addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    let target = match &config.target.host {
        Some(host) => format!("{host}:{}", config.target.port),
        None => match secrets.server() {
            Ok(Some((host, port))) => format!("{host}:{port}"),
            _ => "none".into(),
        },
    };
    let cap = match config.pool.max_connections {
        MaxConnections::Percent(percent) => format!("{percent} % of the server's connections"),
        MaxConnections::Count(count) => format!("{count} connections"),
    };
    let admin = config
        .admin
        .address
        .map_or("off".into(), |address| address.to_string());
    let filters = match config.pool.session_pinning_filters.join(", ") {
        none if none.is_empty() => none,
        reasons => format!("\nfilters {reasons}: sessions lose what they leave behind for these"),
    };
    format!(
        "listen  {}{}\ntarget  {} ({target}), {cap}\nclients {}\nsecrets {} for {} roles\nadmin   {admin}{filters}",
        listen.join(", "),
        if config.listen.require_tls {
            ", TLS only"
        } else {
            ""
        },
        config.target.name,
        config.limits.max_clients,
        secrets.len(),
        secrets.roles(),
    )
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn load_with(name: &str, toml: &str, secrets: &str, mode: u32) -> Result<String, String> {
        let folder =
            std::env::temp_dir().join(format!("pgsluice-cli-{}-{name}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("pgsluice.toml"), toml).unwrap();
        fs::write(folder.join("secrets.json"), secrets).unwrap();
        fs::set_permissions(folder.join("secrets.json"), Permissions::from_mode(mode)).unwrap();
        let loaded = load(&folder.join("pgsluice.toml"), std::iter::empty());
        fs::remove_dir_all(&folder).unwrap();
        match loaded {
            Ok((config, secrets)) => Ok(summary(&config, &secrets)),
            Err(faults) => Err(faults
                .to_string()
                .replace(folder.to_str().unwrap(), "FOLDER")),
        }
    }

    const SECRET: &str = r#"{"username":"a","password":"hunter2","host":"db"}"#;
    const HOSTLESS: &str = r#"{"username":"a","password":"hunter2"}"#;

    #[test]
    fn the_summary_names_what_counts() {
        let expected = "listen  127.0.0.1:6432\ntarget  primary (db:5432), 7 connections\n\
                        clients 10000\nsecrets 1 for 1 roles\nadmin   127.0.0.1:9432";
        let told = load_with("summary", "[pool]\nmax_connections = 7", SECRET, 0o600);
        assert_eq!(told.as_deref(), Ok(expected));
    }

    #[test]
    fn faults_of_configuration_and_secrets_are_told_together() {
        let told = load_with("both", "[pool]\nmode = 'x'", SECRET, 0o644).unwrap_err();
        let lines: Vec<_> = told.lines().collect();
        assert_eq!(lines.len(), 2, "{told}");
        assert!(lines[0].starts_with("pool.mode: "), "{told}");
        assert!(
            lines[1].starts_with("secrets.file: FOLDER/secrets.json is open to everyone"),
            "{told}"
        );

        let told = load_with("trust", "auth.trust = ['a', 'b']", SECRET, 0o600).unwrap_err();
        assert!(
            told.starts_with("auth.trust[1]: is a role without a secret"),
            "{told}"
        );

        let told = load_with("host", "", HOSTLESS, 0o600).unwrap_err();
        assert!(
            told.starts_with("target.host: is missing, and no secret names a host"),
            "{told}"
        );
        assert!(load_with("hostless", "[target]\nhost = 'x'", HOSTLESS, 0o600).is_ok());
    }

    #[test]
    fn certificates_are_looked_into() {
        let toml = "[listen]\ntls_certificate_file = 'pgsluice.toml'\ntls_private_key_file = 'missing'\n\
                    [target]\ntls = 'verify-ca'\ntls_ca_file = 'secrets.json'\n\
                    tls_certificate_file = 'secrets.json'\ntls_private_key_file = 'secrets.json'\n";
        let told = load_with("certificates", toml, SECRET, 0o600).unwrap_err();
        let mut keys: Vec<_> = told
            .lines()
            .filter_map(|line| line.split(": ").next())
            .collect();
        keys.sort_unstable();
        let expected = [
            "listen.tls_certificate_file",
            "listen.tls_private_key_file",
            "target.tls_ca_file",
            "target.tls_certificate_file",
            "target.tls_private_key_file",
        ];
        assert_eq!(keys, expected, "{told}");
        assert!(!told.contains("hunter2"), "{told}");
    }

    #[test]
    fn arguments() {
        let cases: &[(&[&str], bool)] = &[
            (&["run", "--config", "x.toml"], true),
            (&["check-config", "--config=x.toml"], true),
            (&["run"], false),
            (&[], false),
            (&["--version"], false),
        ];
        for (arguments, good) in cases {
            let parsed = Cli::try_parse_from([&["pgsluice"], *arguments].concat());
            assert_eq!(parsed.is_ok(), *good, "{arguments:?}");
        }
    }
}
