//! A database connection that has logged in. It exists only then: made by [`super::connect::connect`] alone.

use super::cancel::{CancelTarget, send_cancel};
use super::prepared::{PreparedHere, SqlPreparedHere};
use super::settings::Settings;
use crate::ids::{BackendId, Role};
use crate::tls::Stream;
use crate::wire::frame::{HEADER_LEN, Header, take_frame};
use crate::wire::from_backend::{ServerError, TxStatus, parameter_status};
use crate::wire::to_backend;
use bytes::BytesMut;
use std::any::Any;
use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

/// How long a server may take to close its end before the log says so, again and again: a process that rolls back a
/// large transaction takes its time.
const CLOSE_REMINDER: Duration = Duration::from_secs(30);

/// How long a cancel may take before a close.
const CANCEL_DEADLINE: Duration = Duration::from_secs(5);

/// The longest message that is read while a backend is idle.
const NEWS_LEN_MAX: usize = 64 * 1024;

/// The ParameterStatus values a server has reported: shared until one changes.
#[derive(Clone, Debug, Default)]
pub struct Parameters(Arc<Vec<(String, String)>>);

impl PartialEq for Parameters {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Parameters {
    /// A value by its name as the server writes it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter()
            .find(|(other, _)| *other == name)
            .map(|(_, value)| value)
    }

    /// A value was reported.
    pub fn set(&mut self, name: &str, value: &str) {
        if self.get(name) == Some(value) {
            return;
        }
        let all = Arc::make_mut(&mut self.0);
        match all.iter_mut().find(|(other, _)| other == name) {
            Some((_, known)) => value.clone_into(known),
            None => all.push((name.to_owned(), value.to_owned())),
        }
    }

    /// Names and values in the order first reported.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// Something that is dropped only when the server's connection is gone: the permit it counts against.
pub type HeldUntilGone = Box<dyn Any + Send + Sync>;

/// A database connection that has logged in.
pub struct BackendConnection {
    /// Its number in logs.
    pub id: BackendId,
    /// The connection.
    pub stream: Stream,
    /// Bytes read and not yet examined.
    pub buf: BytesMut,
    /// How to cancel what runs on it.
    pub key: CancelTarget,
    /// What the server has reported.
    pub parameters: Parameters,
    /// What it had reported before any client used it.
    pub(super) first_parameters: Parameters,
    /// Where its session stands.
    pub status: TxStatus,
    /// Encrypted.
    pub tls: bool,
    /// What clients' settings it has; `None`: not known.
    pub applied: Option<Settings>,
    /// Which of the proxy's statements it has.
    pub prepared: PreparedHere,
    /// What a session has prepared on it by SQL.
    pub sql_prepared: SqlPreparedHere,
    /// Statements that a session sees by its own names.
    pub shown: Vec<String>,
    pub(super) role: Role,
    /// `init_query`: what RESET ALL and DISCARD ALL take away beside the clients' settings.
    pub(super) init_query: Option<Arc<str>>,
    pub(super) held: HeldUntilGone,
}

impl fmt::Debug for BackendConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendConnection")
            .field("id", &self.id)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl BackendConnection {
    /// The role it has logged in as.
    pub fn login_role(&self) -> &str {
        self.role.as_str()
    }

    /// The SQL that gives this backend a client's settings; `None` if it has them.
    pub fn replay_sql(&self, settings: &Settings) -> Option<String> {
        settings.replay_sql(self.applied.as_ref(), self.init_query.as_deref())
    }

    /// The value of a parameter that no client has set, where `init_query` has; `None` for the server's own default.
    pub fn default_value(&self, name: &str) -> Option<&str> {
        let mut reported = self.first_parameters.iter();
        let (_, value) = reported.find(|(reported, _)| reported.eq_ignore_ascii_case(name))?;
        self.has_init_query().then_some(value)
    }

    /// There is an `init_query`.
    pub fn has_init_query(&self) -> bool {
        self.init_query.is_some()
    }

    /// DISCARD ALL has run: no client's settings are left, no statement, and nothing of `init_query`.
    pub fn was_discarded(&mut self) {
        self.prepared.clear();
        self.sql_prepared.clear();
        self.shown.clear();
        self.was_discarded_but_for_statements();
    }

    /// [`Self::was_discarded`], but statements prepared since are there.
    pub fn was_discarded_but_for_statements(&mut self) {
        self.applied = self.init_query.is_none().then(Settings::empty);
    }

    /// Whether an idle backend can still be used. No system call unless something has arrived: then it is read, and
    /// anything but a notice, a notification or a parameter's new value means that it is over.
    pub fn is_alive(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            match self.read_news() {
                News::None => {}
                News::Harmless => continue,
                News::Over => return false,
            }
            if self.stream.socket().poll_read_ready(&mut cx).is_pending() {
                return true;
            }
            match tokio_util::io::poll_read_buf(Pin::new(&mut self.stream), &mut cx, &mut self.buf)
            {
                Poll::Pending => return self.buf.is_empty(),
                Poll::Ready(Ok(count)) if count > 0 => {}
                Poll::Ready(_) => return false,
            }
        }
    }

    /// Takes one message off what has been read.
    fn read_news(&mut self) -> News {
        let header = match Header::parse(&self.buf) {
            Ok(Some(header)) => header,
            Ok(None) => return News::None,
            Err(_) => return News::Over,
        };
        if !matches!(header.tag, b'N' | b'A' | b'S' | b'E') {
            return News::Over;
        }
        let Ok(frame) = take_frame(&mut self.buf, NEWS_LEN_MAX) else {
            return News::Over;
        };
        let Some(frame) = frame else {
            return News::None;
        };
        match frame.tag {
            b'S' => {
                if let Some((name, value)) = parameter_status(&frame.body) {
                    self.parameters.set(name, value);
                }
                News::Harmless
            }
            b'E' => {
                let words = ServerError::parse(&frame.body);
                tracing::info!(backend = %self.id, %words, "the server closed an idle backend");
                News::Over
            }
            _ => News::Harmless,
        }
    }

    /// Says goodbye and waits until the server has closed its end, which it does after the connection has left
    /// pg_stat_activity (its exit callbacks run before the process ends).
    pub async fn close(self) {
        let Self { stream, held, .. } = self;
        close_stream(stream, held, true).await;
    }

    /// [`Self::close`] for a backend on which a statement may be running: it is cancelled first.
    pub async fn cancel_and_close(self) {
        if let Err(error) = send_cancel(&self.key, CANCEL_DEADLINE).await {
            tracing::debug!(backend = %self.id, %error, "cancel before close failed");
        }
        self.close().await;
    }
}

enum News {
    None,
    Harmless,
    Over,
}

/// Closes a connection in order and lets go of what was held for it only when the server has closed its end, however
/// long that takes: until then its process counts against the server's connections. What a dead peer leaves behind is
/// ended by TCP (keepalive, or the goodbye that is never acknowledged).
pub(super) async fn close_stream(stream: Stream, held: HeldUntilGone, logged_in: bool) {
    let (mut incoming, mut outgoing) = tokio::io::split(stream);
    // Written while reading: a server that is still sending reads our goodbye only when it can send on.
    let goodbye = async {
        if logged_in {
            let mut goodbye = BytesMut::with_capacity(HEADER_LEN);
            to_backend::terminate(&mut goodbye);
            outgoing.write_all(&goodbye).await?;
        }
        outgoing.shutdown().await
    };
    let mut rest = vec![0; 4096];
    let end = async { while matches!(incoming.read(&mut rest).await, Ok(count) if count > 0) {} };
    let mut closing = pin!(closing(goodbye, end));
    let since = Instant::now();
    while timeout(CLOSE_REMINDER, &mut closing).await.is_err() {
        tracing::warn!(
            "a server has not closed its end for {} s; the connection counts until it does",
            since.elapsed().as_secs()
        );
    }
    drop(held);
}

/// The end is what counts: the connection may be closed before the goodbye is written.
async fn closing(goodbye: impl Future<Output = io::Result<()>>, end: impl Future<Output = ()>) {
    let mut end = pin!(end);
    tokio::select! {
        () = &mut end => return,
        _ = goodbye => {}
    }
    end.await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Socket;
    use tokio::net::UnixStream;
    use tokio::sync::oneshot;

    fn pair() -> (Stream, UnixStream) {
        let (ours, server) = UnixStream::pair().unwrap();
        (Stream::Plain(Socket::Unix(ours)), server)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_counts_until_the_server_has_closed_it() {
        let (ours, mut server) = pair();
        let (held, mut gone) = oneshot::channel::<()>();
        let closing = tokio::spawn(close_stream(ours, Box::new(held), true));
        tokio::time::sleep(CLOSE_REMINDER * 10).await;
        assert_eq!(gone.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        let mut goodbye = Vec::new();
        server.read_to_end(&mut goodbye).await.unwrap();
        assert_eq!(goodbye, b"X\0\0\0\x04");
        drop(server);
        closing.await.unwrap();
        assert_eq!(gone.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }

    #[tokio::test]
    async fn a_server_that_is_still_sending_gets_the_goodbye() {
        let (ours, mut server) = pair();
        let closing = tokio::spawn(close_stream(ours, Box::new(()), true));
        server.write_all(&vec![0; 4 << 20]).await.unwrap();
        let mut goodbye = Vec::new();
        server.read_to_end(&mut goodbye).await.unwrap();
        drop(server);
        closing.await.unwrap();
    }
}
