//! Arguments, configuration, the running proxy, an exit code.

use pgsluice::cli::{self, Command};
use pgsluice::{app, config, logging};
use std::path::Path;
use std::process::ExitCode;

/// EX_USAGE of sysexits.h: the configuration is at fault.
const BAD_CONFIGURATION: u8 = 64;

fn main() -> ExitCode {
    match cli::parse().command {
        Command::CheckConfig { config } => ExitCode::from(cli::check_config(&config)),
        Command::Run { config } => ExitCode::from(run(&config)),
    }
}

fn run(path: &Path) -> u8 {
    let config = match config::load(path, std::env::vars()) {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("{faults}");
            return BAD_CONFIGURATION;
        }
    };
    logging::init(&config.log);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all();
    if config.run.worker_threads > 0 {
        runtime.worker_threads(config.run.worker_threads);
    }
    let runtime = match runtime.build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the threads could not be started");
            return 1;
        }
    };
    match runtime.block_on(app::run(config)) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(%error, "pgsluice could not start");
            if error.is_configuration() { BAD_CONFIGURATION } else { 1 }
        }
    }
}
