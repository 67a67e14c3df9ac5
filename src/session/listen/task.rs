//! The connection that listens for all sessions of a database: a lease of its own, from the session that was the first,
//! until nobody listens any more. It never waits for a session.

use super::hub::{Changes, Hub};
use super::inbox::Fault;
use super::registry::Listeners;
use super::sql::{MARKER_CHANNEL, Notification, listen, unlisten};
use crate::backend::exchange::simple_query;
use crate::drain::{DrainWatch, Phase};
use crate::ids::Database;
use crate::pool::{DiscardReason, GiveBack, Lease};
use crate::wire::frame::{Frame, HEADER_LEN, read_frame};
use crate::wire::from_backend::{ServerError, TxStatus};
use crate::wire::to_backend;
use bytes::{BufMut, Bytes, BytesMut};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep_until};

/// The longest message a listener gets: a payload has less than 8,000 bytes (src/include/commands/async.h).
const FRAME_LEN_MAX: usize = 64 * 1024;

/// How long a query may take to be sent, and the last one to be answered.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long the server may take to answer: without it all who listen would wait for nothing.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// What the session before has set must not end the connection, nor what it does.
const SETTINGS: &[u8] =
    b"SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name IN \
('statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_session_timeout', \
'idle_in_transaction_session_timeout'); \
SELECT pg_catalog.set_config('application_name', 'pgsluice listener', false), \
pg_catalog.set_config('client_encoding', pg_catalog.current_setting('server_encoding'), false);";

/// Why it does not listen any more.
enum End {
    /// Nobody is there.
    Unused,
    /// The connection is lost, or can't be trusted.
    Lost(String),
}

/// Listens until nobody does, or the connection is lost.
pub(super) async fn run(
    listeners: Arc<Listeners>,
    database: Database,
    hub: Arc<Hub>,
    mut lease: Lease,
    mut watch: DrainWatch,
) {
    let pool = lease.pool().clone();
    let _counted = pool.listener();
    tracing::info!(pool = %pool.key(), "a listener for all sessions of the database has started");
    loop {
        match serve(&hub, &mut lease, &mut watch).await {
            End::Unused if clean(&mut lease).await => {
                if !listeners.retire(&database, &hub) {
                    continue;
                }
                tracing::info!(pool = %pool.key(), "the listener has ended: nobody listens");
                return match GiveBack::check(lease.conn(), true) {
                    Some(proof) => lease.give_back(proof),
                    None => lease.discard(DiscardReason::NotClean),
                };
            }
            End::Unused => {
                return lose(&listeners, (&database, &hub), lease, "it broke off".into());
            }
            End::Lost(words) => return lose(&listeners, (&database, &hub), lease, words),
        }
    }
}

fn lose(listeners: &Listeners, (database, hub): (&Database, &Hub), lease: Lease, words: String) {
    tracing::warn!(pool = %lease.pool().key(), %words, "the listener is lost");
    // First off the list, so that who listens anew founds another.
    listeners.close(database, hub, &Fault::Lost(words));
    lease.discard(DiscardReason::ServerClosed);
}

/// Nothing of the listener, nor of the session before it, is left.
async fn clean(lease: &mut Lease) -> bool {
    let conn = lease.conn();
    let discarded = simple_query(conn, "DISCARD ALL", DEADLINE).await.is_ok();
    conn.was_discarded();
    discarded && conn.status == TxStatus::Idle
}

async fn serve(hub: &Hub, lease: &mut Lease, watch: &mut DrainWatch) -> End {
    let mut first = SETTINGS.to_vec();
    first.extend(listen(MARKER_CHANNEL));
    if let Err(error) = send(lease, &first).await {
        return End::Lost(error.to_string());
    }
    let mut answering = Some(Changes::default());
    let mut due = Instant::now() + ANSWER_DEADLINE;
    loop {
        if answering.is_none() {
            if let Some(changes) = hub.take_changes() {
                if let Err(error) = send(lease, &sql_of(&changes)).await {
                    return End::Lost(error.to_string());
                }
                answering = Some(changes);
                due = Instant::now() + ANSWER_DEADLINE;
            } else if hub.is_unused() {
                return End::Unused;
            }
        }
        let conn = lease.conn();
        let frame = tokio::select! {
            frame = read_frame(&mut conn.stream, &mut conn.buf, FRAME_LEN_MAX) => frame,
            () = hub.news.notified(), if answering.is_none() => continue,
            () = sleep_until(due), if answering.is_some() => {
                return End::Lost("the server does not answer".into());
            }
            () = watch.reached(Phase::Aborting) => return End::Lost("pgsluice is stopping".into()),
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return End::Lost(error.to_string()),
        };
        match frame.tag {
            b'A' => {
                let Some(notification) = Notification::parse(&frame.body) else {
                    return End::Lost("a notification can't be read".into());
                };
                let count = hub.deliver(notification, &whole(&frame));
                lease.pool().notified(count);
            }
            b'Z' => match answering.take() {
                Some(changes) => hub.confirmed(changes),
                None => return End::Lost("an answer came that nobody asked for".into()),
            },
            b'E' => return End::Lost(ServerError::parse(&frame.body).message),
            b'T' | b'D' | b'C' | b'N' | b'S' => {}
            _ => return End::Lost("the server broke the protocol".into()),
        }
    }
}

fn sql_of(changes: &Changes) -> Vec<u8> {
    let listen = changes.listen.iter().map(|channel| listen(channel));
    let unlisten = changes.unlisten.iter().map(|channel| unlisten(channel));
    listen.chain(unlisten).collect::<Vec<_>>().join(&b';')
}

async fn send(lease: &mut Lease, sql: &[u8]) -> std::io::Result<()> {
    let mut message = BytesMut::new();
    to_backend::query(&mut message, sql);
    let stream = &mut lease.conn().stream;
    let sending = async {
        stream.write_all(&message).await?;
        stream.flush().await
    };
    tokio::time::timeout(DEADLINE, sending).await?
}

/// The frame as it came, in memory of its own: it is shared by all who get it, and holds nothing else.
fn whole(frame: &Frame) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER_LEN + frame.body.len());
    bytes.put_u8(frame.tag);
    bytes.put_u32(4 + frame.body.len() as u32); // FRAME_LEN_MAX
    bytes.put_slice(&frame.body);
    bytes.freeze()
}
