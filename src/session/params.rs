//! Run-time parameters a client asks for at login: what the server will tell it about them.
//!
//! PostgreSQL answers a login with the ParameterStatus values its settings led to. The proxy finds these out on a real
//! backend the first time, and remembers them for the next client with the same pool and settings.

use crate::backend::connection::Parameters;
use crate::backend::exchange::{ExchangeError, simple_query};
use crate::backend::settings::Settings;
use crate::error::{ClientFacing, Fault, SqlState};
use crate::ids::PoolKey;
use crate::pool::{BorrowError, DiscardReason, GiveBack, Pool};
use crate::wire::from_backend::ServerError;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long an answer is believed: a server may be upgraded or configured anew.
const BELIEVED_FOR: Duration = Duration::from_secs(60);

/// Answers remembered; beyond it all are forgotten and asked for again.
const REMEMBERED_MAX: usize = 1024;

const APPLICATION_NAME: &str = "application_name";

/// Backends asked for one login: a server that restarts breaks some in a row.
const ASK_TRIES: u32 = 3;

/// How long somebody waits for a backend who could do with an old answer.
const STALE_PATIENCE: Duration = Duration::from_secs(1);

/// How long the server may take to apply a client's settings.
const APPLY_DEADLINE: Duration = Duration::from_secs(10);

/// What servers told about logins.
#[derive(Default)]
pub struct LoginParameters {
    known: Mutex<HashMap<(PoolKey, Settings), (Instant, Parameters)>>,
}

/// Why a login can't be welcomed.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// There is no backend.
    #[error(transparent)]
    Borrow(#[from] BorrowError),
    /// The server does not like a parameter.
    #[error("{0}")]
    Refused(ServerError),
    /// The backend broke off.
    #[error("the database connection broke while a client's parameters were applied: {0}")]
    Broken(ExchangeError),
}

impl ClientFacing for LoginError {
    fn fault(&self) -> Fault {
        match self {
            LoginError::Borrow(error) => error.fault(),
            LoginError::Refused(_) => Fault::Client,
            LoginError::Broken(_) => Fault::Backend,
        }
    }

    fn sqlstate(&self) -> SqlState {
        match self {
            LoginError::Borrow(error) => error.sqlstate(),
            LoginError::Refused(error) => error.code,
            LoginError::Broken(_) => SqlState::CONNECTION_FAILURE,
        }
    }

    fn client_message(&self) -> String {
        match self {
            LoginError::Borrow(error) => error.client_message(),
            LoginError::Refused(error) => error.message.clone(),
            LoginError::Broken(_) => "the database connection broke during login; try again".into(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            LoginError::Borrow(error) => error.hint(),
            _ => None,
        }
    }
}

impl LoginParameters {
    fn lock(&self) -> MutexGuard<'_, HashMap<(PoolKey, Settings), (Instant, Parameters)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the server tells a client of this pool that asks for these settings.
    pub async fn ask(
        &self,
        pool: &Arc<Pool>,
        settings: &Settings,
        patience: Duration,
    ) -> Result<Parameters, LoginError> {
        // Often as many names as there are clients, and its effect is known.
        let (settings, application_name) = settings.without_plain(APPLICATION_NAME);
        let mut parameters = self.ask_for(pool, &settings, patience).await?;
        if let Some(name) = application_name {
            parameters.set(APPLICATION_NAME, &name);
        }
        Ok(parameters)
    }

    async fn ask_for(
        &self,
        pool: &Arc<Pool>,
        settings: &Settings,
        patience: Duration,
    ) -> Result<Parameters, LoginError> {
        let name = (pool.key().clone(), settings.clone());
        let known = match self.look_up(&name) {
            Known::Fresh(parameters) => return Ok(parameters),
            Known::Stale(parameters) => Some(parameters),
            Known::Nothing => None,
        };
        let patience = match known {
            Some(_) => patience.min(STALE_PATIENCE),
            None => patience,
        };
        match ask_server(pool, settings, patience).await {
            Ok(parameters) => {
                let mut all = self.lock();
                if all.len() >= REMEMBERED_MAX {
                    all.clear();
                }
                all.insert(name, (Instant::now(), parameters.clone()));
                Ok(parameters)
            }
            Err(error) => match (known, &error) {
                // The server is busy or away; what it said last still lets a client in.
                (Some(parameters), LoginError::Borrow(BorrowError::TimedOut { .. }))
                | (Some(parameters), LoginError::Broken(_)) => Ok(parameters),
                (Some(parameters), LoginError::Borrow(BorrowError::Connect(error)))
                    if error.sqlstate() == SqlState::CONNECTION_FAILURE =>
                {
                    Ok(parameters)
                }
                _ => Err(error),
            },
        }
    }

    /// The one who finds an answer stale asks anew; those who come meanwhile still believe it.
    fn look_up(&self, name: &(PoolKey, Settings)) -> Known {
        match self.lock().get_mut(name) {
            Some((asked, parameters)) if asked.elapsed() < BELIEVED_FOR => {
                Known::Fresh(parameters.clone())
            }
            Some((asked, parameters)) => {
                *asked = Instant::now();
                Known::Stale(parameters.clone())
            }
            None => Known::Nothing,
        }
    }
}

enum Known {
    Fresh(Parameters),
    Stale(Parameters),
    Nothing,
}

/// Nothing of the client's runs here: if a backend breaks, another is asked.
async fn ask_server(
    pool: &Arc<Pool>,
    settings: &Settings,
    patience: Duration,
) -> Result<Parameters, LoginError> {
    for _ in 1..ASK_TRIES {
        match ask_one(pool, settings, patience).await {
            Err(LoginError::Broken(error)) => {
                tracing::debug!(%error, "a backend broke during a login; asking another");
            }
            answer => return answer,
        }
    }
    ask_one(pool, settings, patience).await
}

async fn ask_one(
    pool: &Arc<Pool>,
    settings: &Settings,
    patience: Duration,
) -> Result<Parameters, LoginError> {
    let mut lease = pool.borrow(patience).await?;
    let conn = lease.conn();
    if let Some(sql) = conn.replay_sql(settings) {
        conn.applied = None;
        match simple_query(conn, &sql, APPLY_DEADLINE).await {
            Ok(_) => conn.applied = Some(settings.clone()),
            Err(ExchangeError::Server(error)) => {
                give_back(lease);
                return Err(LoginError::Refused(error));
            }
            Err(error) => {
                lease.discard(DiscardReason::ServerClosed);
                return Err(LoginError::Broken(error));
            }
        }
    }
    let parameters = lease.conn().parameters.clone();
    give_back(lease);
    Ok(parameters)
}

fn give_back(mut lease: crate::pool::Lease) {
    match GiveBack::check(lease.conn(), true) {
        Some(proof) => lease.give_back(proof),
        None => lease.discard(DiscardReason::NotClean),
    }
}
