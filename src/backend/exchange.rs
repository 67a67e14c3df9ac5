//! The proxy's own small queries on a backend at rest.

use super::connection::BackendConnection;
use crate::wire::frame::{Frame, ReadError, read_frame};
use crate::wire::from_backend::{ServerError, TxStatus, first_column, parameter_status};
use crate::wire::to_backend;
use bytes::BytesMut;
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// The longest message an answer may hold.
const ANSWER_LEN_MAX: usize = 64 * 1024;

/// What a query of ours brought.
#[derive(Debug, Default)]
pub struct QueryOutcome {
    first: Option<String>,
}

impl QueryOutcome {
    /// First column of the first row.
    pub fn first_value(&self) -> Option<&str> {
        self.first.as_deref()
    }
}

/// Why a query of ours failed. Only after [`ExchangeError::Server`] can the backend be used on.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The server refused it.
    #[error(transparent)]
    Server(ServerError),
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What came is not the protocol.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A message that does not belong here.
    #[error("unexpected message {0:#04x}")]
    Unexpected(u8),
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
}

/// Runs SQL (one or more statements) by the simple protocol, and reads to ReadyForQuery.
pub async fn simple_query(
    conn: &mut BackendConnection,
    sql: &str,
    deadline: Duration,
) -> Result<QueryOutcome, ExchangeError> {
    let exchange = async {
        let mut message = BytesMut::new();
        to_backend::query(&mut message, sql.as_bytes());
        conn.stream.write_all(&message).await?;
        conn.stream.flush().await?;
        read_answer(conn).await
    };
    tokio::time::timeout(deadline, exchange)
        .await
        .unwrap_or(Err(ExchangeError::TimedOut(deadline)))
}

async fn read_answer(conn: &mut BackendConnection) -> Result<QueryOutcome, ExchangeError> {
    let mut outcome = QueryOutcome::default();
    let mut refused = None;
    loop {
        let frame = read_frame(&mut conn.stream, &mut conn.buf, ANSWER_LEN_MAX).await?;
        match frame.tag {
            b'D' if outcome.first.is_none() => {
                outcome.first = first_column(&frame.body).map(str::to_owned);
            }
            b'E' => refused = Some(ServerError::parse(&frame.body)),
            b'Z' => {
                conn.status = status(&frame)?;
                return refused.map_or(Ok(outcome), |error| Err(ExchangeError::Server(error)));
            }
            b'S' => {
                if let Some((name, value)) = parameter_status(&frame.body) {
                    conn.parameters.set(name, value);
                }
            }
            b'T' | b'D' | b'C' | b'I' | b'N' | b'A' => {}
            other => return Err(ExchangeError::Unexpected(other)),
        }
    }
}

/// Reads a ReadyForQuery.
pub(super) fn status(frame: &Frame) -> Result<TxStatus, ExchangeError> {
    let byte = frame.body.first().copied().unwrap_or(0);
    TxStatus::from_byte(byte).ok_or(ExchangeError::Unexpected(frame.tag))
}
