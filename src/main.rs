//! Arguments, configuration, the running proxy, an exit code.

use pgsluice::cli::{self, Command, ConfigArgument};
use pgsluice::{app, config, logging};
use std::process::ExitCode;
use std::time::Duration;

/// A name that is being looked up can't be interrupted; it must not hold up the exit.
const THREADS_DEADLINE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    match cli::parse().command {
        Command::CheckConfig(ConfigArgument { config }) => cli::check_config(&config),
        Command::Run(ConfigArgument { config }) => {
            match cli::load(&config, config::process_environment()) {
                Ok((config, secrets)) => run(config, secrets),
                Err(faults) => cli::report(&faults),
            }
        }
    }
}

fn run(config: config::Config, secrets: pgsluice::secrets::SecretStore) -> ExitCode {
    if let Err(error) = logging::init(&config.log) {
        cli::tell(&error);
        return ExitCode::from(cli::EXIT_BAD_CONFIGURATION);
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all();
    if config.run.worker_threads > 0 {
        runtime.worker_threads(config.run.worker_threads);
    }
    let ended = match runtime.build() {
        Ok(runtime) => {
            let ended = runtime.block_on(app::run(config, secrets));
            runtime.shutdown_timeout(THREADS_DEADLINE);
            ended
        }
        Err(source) => Err(app::StartError::System {
            what: "worker threads".into(),
            source,
        }),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if tracing::enabled!(tracing::Level::ERROR) {
                tracing::error!(%error, "pgsluice could not start");
            } else {
                cli::tell(&format_args!("pgsluice could not start: {error}"));
            }
            let bad_configuration = error.is_configuration();
            ExitCode::from(if bad_configuration {
                cli::EXIT_BAD_CONFIGURATION
            } else {
                1
            })
        }
    }
}
