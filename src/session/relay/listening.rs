//! A lease's part in listening without a backend of one's own (`session/listen` says what it is about).
//!
//! While the session has a subscription its notifications come through the shared listener; what this backend hears of the
//! same channels is dropped. Two moves, each at a marker that both connections hear:
//!
//! - *bring*: before a request that may change what the session listens to, in the transaction that the request runs in.
//!   If that is rolled back the marker is never sent, and nothing has moved: so rollbacks and savepoints need no rules here.
//! - *move away*: when the survey has told what the session listens to, and the listener hears all of that.

mod hearing;
mod moving;

use super::up::effects_of;
use super::{Relay, RelayEnd, Scan, Sides};
use crate::backend::connection::BackendConnection;
use crate::session::listen::{
    Channel, Founding, MARKER_CHANNEL, Marker, Membership, listen, notify, unlisten,
};
use crate::session::memory::Memory;
use crate::session::pin::PinReason;
use crate::session::prepared::{Named, named};
use crate::session::relay::Hold;
use crate::session::replies::{Expect, ReplyAction};
use crate::session::requests::Unnamed;
use crate::session::statement::Effects;
use crate::wire::frame::Header;
use crate::wire::from_backend::TxStatus;
use crate::wire::to_backend;
use bytes::{Bytes, BytesMut};
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;
use tokio::time::Sleep;

/// How long the listener may take to hear what a session wants, or to tell what it has heard.
const JOIN_DEADLINE: Duration = Duration::from_secs(10);

/// Notifications kept aside; with more it is not known what the session listens to.
const ASIDE_MAX: usize = 1024;

/// Notifications put before a client that has read all before them.
const DELIVERED_MAX: usize = 64 * 1024;

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Listening {
    /// Markers sent behind the session's channels, and not heard yet.
    brought: Vec<Marker>,
    /// Something has been rolled back since the last of them was sent.
    rolled_back: bool,
    /// They were brought for a request that waits until they are here.
    for_request: bool,
    /// What the server has said that this backend listens to.
    found: Option<Vec<Channel>>,
    away: Away,
    /// What the session listens to can't be told.
    unsure: bool,
    /// The session has sent notifications.
    notified: bool,
    /// What this backend has heard after them and before it was clear what they are worth.
    aside: Vec<Aside>,
    /// The listener was asked whether markers were sent that this backend has not heard; with a deadline.
    asked: Option<Pin<Box<Sleep>>>,
    /// ReadyForQuery is owed to the client until its own notifications have come.
    owes_ready: bool,
    /// The client has left: nothing is put in order for it any more.
    pub(super) abandoned: bool,
}

/// A notification that may be the session's.
#[derive(Debug)]
struct Aside {
    frame: Bytes,
    /// The session has sent it.
    own: bool,
    /// Its listener hears it, too.
    shared: bool,
}

/// Why a request needs the session's channels on its backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Need {
    /// It may change them.
    Change,
    /// It asks for them.
    Read,
}

/// Moving away.
#[derive(Debug, Default)]
enum Away {
    #[default]
    No,
    /// The listener is to hear all the session wants.
    Joining(Membership, Pin<Box<Sleep>>),
    /// The marker is on its way.
    Marking(Membership, Marker),
    /// It has come: the session hears through the listener.
    Marked,
    /// This backend is to listen to nothing.
    Clearing,
    /// This backend is to hear markers, before it is the listener: the session's next request may send one.
    Founding(Founding),
}

impl Listening {
    /// The client's next request waits.
    pub(super) fn is_moving(&self) -> bool {
        !matches!(self.away, Away::No)
    }

    /// What was brought is here, and the request that it was brought for comes next.
    pub(super) fn is_for_request(&self) -> bool {
        self.for_request
    }

    /// The survey has found channels.
    pub(super) fn found(&mut self, channels: Vec<Channel>) {
        self.found = Some(channels);
    }
}

impl Listening {
    /// A text is on its way.
    pub(super) fn note(&mut self, effects: Effects) {
        self.notified |= effects.contains(Effects::NOTIFY);
    }

    /// A statement of the client's is done.
    pub(super) fn on_done(&mut self, tag: &str, memory: &Memory) {
        match tag {
            "ROLLBACK" => self.rolled_back = !self.brought.is_empty(),
            // Of what was not here when it ran, it has taken nothing.
            "UNLISTEN" => {
                let brought = !self.brought.is_empty() && !self.rolled_back;
                self.unsure |= memory.subscription.is_some() && !brought;
            }
            _ => {}
        }
    }
}

impl Relay {
    /// What comes for the session through its listener wakes `cx`.
    pub(super) fn watch_listening(&mut self, memory: &Memory, cx: &mut Context<'_>) {
        if let Some(subscription) = &memory.subscription {
            subscription.register(cx);
        }
        if let Some(deadline) = &mut self.listening.asked {
            self.listening.unsure |= deadline.as_mut().poll(cx).is_ready();
        }
        if let Away::Joining(member, deadline) = &mut self.listening.away {
            member.register(cx);
            if deadline.as_mut().poll(cx).is_ready() {
                self.listening.away = Away::No;
            }
        }
    }

    /// Before a request goes: brings the session's channels to this backend if it may change them. True if the request
    /// must wait.
    pub(super) fn bring_channels(&mut self, header: Header, sides: &mut Sides<'_>) -> Scan<bool> {
        let waits = self.must_bring(header, sides)?;
        self.listening.for_request &= waits;
        self.held |= waits;
        Ok(waits)
    }

    fn must_bring(&mut self, header: Header, sides: &mut Sides<'_>) -> Scan<bool> {
        if sides.memory.subscription.is_none() || self.hold == Hold::Session {
            return Ok(false);
        }
        if self.listening.for_request {
            return Ok(!self.replies.is_settled());
        }
        let brought = !self.listening.brought.is_empty();
        if brought && self.replies.outstanding() > 0 {
            // What comes next may depend on what is rolled back, and the transaction's end must show. But a COPY ends
            // only by what comes next.
            return Ok(!self.replies.is_copying_in());
        }
        let Some(need) = self.channels_needed(header, sides) else {
            return Ok(false);
        };
        if self.replies.is_copying_in() || sides.conn.status == TxStatus::Failed {
            // A failed transaction runs nothing that changes them.
            return Ok(false);
        }
        if self.replies.outstanding() > 0 {
            return Ok(true);
        }
        let within_batch =
            self.replies.is_batch_open() || (header.tag != b'Q' && self.keeps_long_unnamed(sides));
        if need == Need::Read && (within_batch || sides.conn.status != TxStatus::Idle) {
            // It would be shown what this backend listened to before the transaction began: nothing.
            return Err(RelayEnd::ListeningUnknown);
        }
        if brought && !self.listening.rolled_back {
            return Ok(false);
        }
        // A query of ours would end the batch, or drop the session's unnamed statement where it can't be prepared anew.
        if within_batch {
            self.bring_within_batch(sides);
        } else {
            self.bring_in_query(sides);
        }
        Ok(!within_batch)
    }

    /// In a query of our own: outside a transaction that is one of its own, inside it is a part of it.
    fn bring_in_query(&mut self, sides: &mut Sides<'_>) {
        let sql = self.bring_sql(sides.memory).join(&b';');
        self.insert_query(&sql, Expect::Listen, sides.up);
        if sides.conn.status == TxStatus::Idle {
            // The client does not see it when it asks for its channels.
            self.insert_query(&unlisten(MARKER_CHANNEL), Expect::Listen, sides.up);
        }
        self.unnamed_here = false; // they are simple queries
        self.listening.for_request = true;
    }

    /// In the middle of a batch, with names that no client's can be.
    fn bring_within_batch(&mut self, sides: &mut Sides<'_>) {
        let mut messages = BytesMut::new();
        for sql in self.bring_sql(sides.memory) {
            to_backend::run_within_batch(&mut messages, b"pgsluice listen", &sql);
            for expect in [
                Expect::Parse,
                Expect::Bind,
                Expect::Execute,
                Expect::Close,
                Expect::Close,
            ] {
                self.replies.push(expect, ReplyAction::Skip);
            }
        }
        sides.up.insert(&messages);
    }

    /// The marker's channel first and the marker last: both come into force when all of it does.
    fn bring_sql(&mut self, memory: &Memory) -> Vec<Vec<u8>> {
        let Some(subscription) = &memory.subscription else {
            return Vec::new();
        };
        let marker = memory.listeners.marker();
        subscription.end_at(&marker);
        let channels = subscription.channels().iter().map(|it| listen(it));
        let sql = std::iter::once(listen(MARKER_CHANNEL)).chain(channels);
        let sql = sql.chain([notify(&marker)]).collect();
        self.listening.brought.push(marker);
        self.listening.rolled_back = false;
        self.pin(PinReason::Listen);
        self.state.listening_touched = true;
        sql
    }

    fn channels_needed(&self, header: Header, sides: &Sides<'_>) -> Option<Need> {
        let frame = sides.up.unread();
        let (effects, text) = match header.tag {
            b'Q' | b'P' => (effects_of(frame, self.plain_strings), frame),
            b'B' => match (named(header, frame), &sides.memory.unnamed) {
                (Named::Use { name, .. }, _) => match sides.memory.names.find(name) {
                    Some(statement) => (Some(statement.effects), &statement.body[..]),
                    None => return None,
                },
                (_, Unnamed::Kept(kept)) => (Some(kept.effects), &kept.parse[..]),
                _ => return None,
            },
            _ => return None,
        };
        let effects = effects?;
        let sets = effects.contains(Effects::SETTINGS) && may_change_encoding(text);
        if effects.contains(Effects::LISTENING_READ) && has_any(text, &[b"pg_listening_channels"]) {
            Some(Need::Read)
        } else {
            (sets || effects.contains(Effects::NEEDS_CHANNELS)).then_some(Need::Change)
        }
    }
}

/// Nothing that the server sends in this client_encoding is converted.
fn has_servers_encoding(conn: &BackendConnection) -> bool {
    let encoding = conn.parameters.get("client_encoding");
    encoding.is_some() && encoding == conn.parameters.get("server_encoding")
}

/// `client_encoding`, `NAMES`, or RESET's `ALL` in any case, or a part of another word. The listener's notifications are
/// not for a session with another encoding: it must be here before that changes.
fn may_change_encoding(text: &[u8]) -> bool {
    has_any(text, &[b"encoding", b"names", b"all"])
}

fn has_any(text: &[u8], words: &[&[u8]]) -> bool {
    words.iter().any(|word| {
        let mut windows = text.windows(word.len());
        windows.any(|window| window.eq_ignore_ascii_case(word))
    })
}
