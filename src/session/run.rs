//! A session's life: read a request, borrow a backend, relay until it can be given back, again.

mod held;
mod idle;
mod watch;

use super::close::{CloseReason, describe, statement_mode_error};
use super::database_ddl;
use super::farewell::Farewell;
use super::listen::{Founding, Listeners};
use super::memory::Memory;
use super::pin::{PinReason, PinReasons};
use super::pin_book::Pinning;
use super::prepared::StatementStore;
use super::relay::{Hold, Relay, RelayEnd, Sides, Terms, opens_transaction};
use super::roster::{Control, Entry, Phase};
use crate::backend::exchange::simple_query;
use crate::backend::settings::Settings;
use crate::cancel::{CancelHandle, Settled};
use crate::config::PoolMode;
use crate::drain::DrainWatch;
use crate::ids::ClientId;
use crate::metrics::SessionMetrics;
use crate::pool::{DiscardReason, GiveBack, Lease, Pool};
use crate::tls::Stream;
use crate::wire::error_response::{ErrorMessage, Severity};
use crate::wire::flow::Flow;
use bytes::BytesMut;
use held::tell_filtered;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;
use watch::Watch;

/// How long a client may take to read its last message.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(2);

/// How long the server may take to throw away what a session has left.
const DISCARD_DEADLINE: Duration = Duration::from_secs(5);

/// Everything a session needs.
pub struct SessionStart {
    /// The client's connection.
    pub stream: Stream,
    /// What it has sent beyond its login.
    pub unread: BytesMut,
    /// What it asked for at login.
    pub settings: Settings,
    /// Where prepared statements are shared.
    pub statements: Arc<StatementStore>,
    /// Who listens for sessions without a backend.
    pub listeners: Arc<Listeners>,
    /// Where its backends come from.
    pub pool: Arc<Pool>,
    /// When it gives them back.
    pub mode: PoolMode,
    /// What must not keep it from that, and where it is written down what does.
    pub pinning: Pinning,
    /// How long it waits for one.
    pub patience: Duration,
    /// Its end of the cancel registry.
    pub cancel: CancelHandle,
    /// Its entry on the roster.
    pub entry: Entry,
    /// Its metrics.
    pub metrics: Arc<SessionMetrics>,
    /// Who it is.
    pub client: ClientId,
    /// Held until its last backend is at rest.
    pub watch: DrainWatch,
}

/// The running thing.
pub struct Session {
    stream: Stream,
    up: Flow,
    /// Answers of the proxy's own, and what a released backend left to be sent.
    outbox: BytesMut,
    skipping: usize,
    /// A request of an extended-protocol batch was refused: all is skipped up to its Sync.
    refusing: bool,
    memory: Memory,
    pool: Arc<Pool>,
    hold: Hold,
    pinning: Pinning,
    patience: Duration,
    cancel: CancelHandle,
    entry: Entry,
    metrics: Arc<SessionMetrics>,
    client: ClientId,
    watch: DrainWatch,
}

enum Waited {
    Lent(Lease),
    Refused(ErrorMessage),
    Closed(CloseReason, Option<ErrorMessage>),
}

enum Ended {
    Relay(RelayEnd),
    Close(CloseReason, ErrorMessage),
}

impl Session {
    /// A session right after its login.
    pub fn new(start: SessionStart) -> Self {
        Self {
            stream: start.stream,
            up: Flow::with_unread(start.unread),
            outbox: BytesMut::new(),
            skipping: 0,
            refusing: false,
            memory: Memory::new(
                start.settings,
                start.statements,
                start.pool.clone(),
                start.listeners,
            ),
            pool: start.pool,
            hold: match start.mode {
                PoolMode::Transaction => Hold::Transaction,
                PoolMode::Statement => Hold::Statement,
                PoolMode::Session => Hold::Session,
            },
            pinning: start.pinning,
            patience: start.patience,
            cancel: start.cancel,
            entry: start.entry,
            metrics: start.metrics,
            client: start.client,
            watch: start.watch,
        }
    }

    fn control(&self) -> &Control {
        &self.entry.control
    }

    /// Serves the client until it leaves or is told to go.
    pub async fn run(mut self) -> CloseReason {
        loop {
            self.control().enter(Phase::Idle);
            if let Err((reason, words)) = poll_fn(|cx| self.poll_request(cx)).await {
                return self.close(reason, words).await;
            }
            if self.hold == Hold::Statement && opens_transaction(self.up.unread()) {
                self.refuse(&statement_mode_error(Severity::Error));
                continue;
            }
            if let Some(text) = database_ddl::begins(self.up.unread()) {
                self.pool.leave_databases(text);
            }
            let since = Instant::now();
            match Box::pin(self.borrow()).await {
                Waited::Lent(lease) => match Box::pin(self.serve(lease, since)).await {
                    Ok(session) => self = session,
                    Err(reason) => return reason,
                },
                Waited::Refused(error) => self.refuse(&error),
                Waited::Closed(reason, words) => return self.close(reason, words).await,
            }
        }
    }

    /// Relays until the backend is free again; the session goes on unless the client is gone or must go.
    async fn serve(mut self, mut lease: Lease, since: Instant) -> Result<Self, CloseReason> {
        self.cancel.lend(lease.conn().key.clone());
        self.control().enter(Phase::Active);
        let terms = Terms {
            hold: self.hold,
            filters: self.pinning.filters,
            read_sequences: self.pool.reads_sequences(),
        };
        let (mut relay, replayed) = Relay::start(terms, &self.memory, lease.conn(), &mut self.up);
        if replayed {
            self.pool.replayed();
        }
        let ended = Watch::new(since)
            .run(&mut self, &mut lease, &mut relay)
            .await;
        if relay.reads_sequences() {
            self.pool.note_sequences_read();
        }
        match ended {
            Ended::Relay(RelayEnd::Released) => Ok(self.release(lease, relay).await),
            Ended::Relay(RelayEnd::Founds(founding)) => {
                Ok(self.found(lease, relay, founding).await)
            }
            Ended::Relay(end) => Err(self.end(lease, relay, end).await),
            Ended::Close(reason, words) => {
                if relay.is_mid_reply() {
                    self.finish_reply(&mut lease, &mut relay).await;
                }
                self.last_words(&mut relay, Some(&words)).await;
                self.leave(lease, relay, false);
                Err(reason)
            }
        }
    }

    /// The backend is at rest: back it goes, once no cancel can reach it.
    async fn release(mut self, mut lease: Lease, relay: Relay) -> Self {
        let settled = match self.cancel.try_take_back() {
            Some(settled) => settled,
            None => self.cancel.take_back().await,
        };
        let (at_rest, leak) = (relay.is_at_rest(&self.up), relay.has_leak());
        tell_filtered(&self, &relay);
        let left = relay.filtered();
        self.outbox = relay.finish(lease.conn());
        // What came behind the last reply is the server's own news; alive or not, it is not for this client.
        let alive = lease.conn().buf.is_empty() || lease.conn().is_alive();
        match GiveBack::check(lease.conn(), at_rest) {
            _ if settled == Settled::InDoubt => lease.discard(DiscardReason::CancelInDoubt),
            _ if leak => lease.discard(DiscardReason::StateLeak),
            Some(proof) if alive && left.is_empty() => lease.give_back(proof),
            Some(_) if alive => throw_away(left, lease).await,
            Some(_) => lease.discard(DiscardReason::ServerClosed),
            None => lease.discard(DiscardReason::NotClean),
        }
        self
    }

    /// The backend listens, for this session and from now on for others, too; this one goes on without it.
    async fn found(mut self, mut lease: Lease, relay: Relay, founding: Founding) -> Self {
        // A cancel still on its way would find nothing running, or end the listener, which its sessions would be told.
        let _ = self.cancel.take_back().await;
        self.outbox = relay.finish(lease.conn());
        let subscription = founding.start(lease, self.watch.clone());
        self.memory.subscription = subscription.map(Box::new);
        self
    }

    /// The relay broke off: last words, the backend's fate, the reason.
    async fn end(mut self, mut lease: Lease, mut relay: Relay, end: RelayEnd) -> CloseReason {
        if relay.is_mid_reply() && matches!(end, RelayEnd::ClientFault(_)) {
            self.finish_reply(&mut lease, &mut relay).await;
        }
        let (reason, words) = describe(&end, relay.last_was_error());
        if let Some(words) = &words {
            tracing::warn!(client = %self.client, reason = reason.label(), cause = ?end, "session broken off");
            self.last_words(&mut relay, Some(words)).await;
        } else if matches!(end, RelayEnd::BackendGone) {
            self.last_words(&mut relay, None).await;
        }
        match end {
            RelayEnd::BackendGone => lease.discard(DiscardReason::ServerClosed),
            RelayEnd::BackendFault(_) => lease.discard(DiscardReason::ServerFault),
            RelayEnd::SettingsRefused(_) => lease.discard(DiscardReason::SettingsRefused),
            _ => {
                let polite = relay.has_quit();
                self.leave(lease, relay, polite);
            }
        }
        reason
    }

    /// Hands the backend to a task that brings it to rest; the client's connection closes when that is done.
    fn leave(self, lease: Lease, relay: Relay, polite: bool) {
        let Self {
            stream,
            up,
            memory,
            cancel,
            entry,
            watch,
            ..
        } = self;
        // The client is gone from the roster at once; its cancel key lives until its backend is at rest.
        drop(entry);
        tokio::spawn(
            Farewell {
                lease,
                relay,
                up,
                memory,
                stream,
                cancel,
                polite,
                _watch: watch,
            }
            .run(),
        );
    }

    /// A last message goes behind a whole reply, not into it.
    async fn finish_reply(&mut self, lease: &mut Lease, relay: &mut Relay) {
        let mut sides = Sides {
            client: &mut self.stream,
            conn: lease.conn(),
            up: &mut self.up,
            memory: &mut self.memory,
        };
        let finishing = poll_fn(|cx| relay.poll_finish_reply(&mut sides, cx));
        let _ = tokio::time::timeout(LAST_WORDS_DEADLINE, finishing).await;
    }

    /// Sends what the relay still has for the client, and a last message; that one not into the middle of a reply.
    async fn last_words(&mut self, relay: &mut Relay, words: Option<&ErrorMessage>) {
        let (stream, whole) = (&mut self.stream, !relay.is_mid_reply());
        let sending = async {
            poll_fn(|cx| relay.poll_flush(stream, cx)).await?;
            let mut message = BytesMut::new();
            if let Some(words) = words.filter(|_| whole) {
                words.encode(&mut message);
            }
            stream.write_all(&message).await?;
            stream.shutdown().await
        };
        // The client may be gone, or not reading: nothing more can be done for it.
        let _ = tokio::time::timeout(LAST_WORDS_DEADLINE, sending).await;
    }

    /// Closes a session that has no backend.
    async fn close(mut self, reason: CloseReason, words: Option<ErrorMessage>) -> CloseReason {
        if let Some(words) = words {
            words.encode(&mut self.outbox);
        }
        let sending = async {
            self.stream.write_all(&self.outbox).await?;
            self.stream.shutdown().await
        };
        let _ = tokio::time::timeout(LAST_WORDS_DEADLINE, sending).await;
        reason
    }
}

/// What a session has left for reasons that must not pin is nobody's: not the next client's either.
async fn throw_away(left: PinReasons, mut lease: Lease) {
    // These never reach another client as it is: see `relay/sequences` and `Relay::bring_unnamed`.
    let harmless = [PinReason::Sequence, PinReason::UnnamedStatement];
    let needs_cleaning = left.iter().any(|reason| !harmless.contains(&reason));
    // Nothing unloads a library.
    let mut clean = !left.contains(PinReason::Load);
    if clean && needs_cleaning {
        let discarded = simple_query(lease.conn(), "DISCARD ALL", DISCARD_DEADLINE).await;
        lease.conn().was_discarded();
        clean = discarded.is_ok();
    }
    match GiveBack::check(lease.conn(), clean) {
        Some(proof) => lease.give_back(proof),
        None => lease.discard(DiscardReason::FilteredPin),
    }
}
