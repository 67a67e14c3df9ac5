//! Which notifications are the session's, and when it gets them.

use super::super::down::malformed;
use super::super::{READ_WHOLE_MAX, Relay, RelayEnd, Scan, Sides};
use super::{ASIDE_MAX, Aside, Away, DELIVERED_MAX, JOIN_DEADLINE, has_servers_encoding};
use crate::session::listen::{MARKER_CHANNEL, Marker, Notification, notify};
use crate::session::relay::Hold;
use crate::session::replies::{Expect, ReplyAction};
use crate::wire::encode;
use crate::wire::frame::{HEADER_LEN, Header};
use crate::wire::from_backend::TxStatus;
use bytes::{Bytes, BytesMut};
use tokio::time::sleep;

impl Relay {
    /// A notification came from this backend: is it the session's? `None` until that can be told.
    pub(in crate::session::relay) fn on_notification(
        &mut self,
        header: Header,
        sides: &mut Sides<'_>,
    ) -> Scan<Option<ReplyAction>> {
        let may_listen = self.may_listen();
        let plain = match may_listen {
            true => ReplyAction::Forward,
            // Whoever else gets one has a backend on which somebody unseen did.
            false => ReplyAction::Skip,
        };
        if self.hold == Hold::Session || (sides.memory.subscription.is_none() && !may_listen) {
            return Ok(Some(plain));
        }
        let Some(body) = self.down.unread().get(HEADER_LEN..header.frame_len()) else {
            let comes = header.body_len <= READ_WHOLE_MAX;
            return if comes {
                Ok(None)
            } else {
                Err(malformed(header))
            };
        };
        let notification = Notification::parse(body).ok_or_else(|| malformed(header))?;
        if notification.channel == MARKER_CHANNEL {
            let is_it = |marker: &Marker| marker.is(notification.payload);
            if let Some(at) = self.listening.brought.iter().position(is_it) {
                return self.on_brought(at, sides);
            }
            let moves = matches!(&self.listening.away, Away::Marking(_, marker) if is_it(marker));
            return match moves {
                true => self.on_moved(sides),
                false => Ok(Some(ReplyAction::Skip)),
            };
        }
        let shared = sides.memory.subscription.as_ref().map(|subscription| {
            let mut shared = subscription.channels().iter();
            shared.any(|channel| channel[..] == *notification.channel)
        });
        match shared {
            Some(shared) if !self.listening.brought.is_empty() => {
                let own = body.first_chunk() == Some(&sides.conn.key.pid().to_be_bytes());
                let frame = &self.down.unread()[..header.frame_len()];
                let frame = Bytes::copy_from_slice(frame);
                self.listening.aside.push(Aside { frame, own, shared });
                self.listening.unsure |= self.listening.aside.len() > ASIDE_MAX;
                Ok(Some(ReplyAction::Skip))
            }
            Some(true) => Ok(Some(ReplyAction::Skip)),
            // What its listener does not hear for it yet.
            Some(false) | None => Ok(Some(plain)),
        }
    }

    /// From here on this backend's notifications are the session's.
    fn on_brought(&mut self, at: usize, sides: &mut Sides<'_>) -> Scan<Option<ReplyAction>> {
        // Of two, both are in force: whether the second took back what a request between them did can't be told.
        self.listening.unsure |= sides.memory.subscription.is_none();
        if !self.end_subscription(sides)? {
            return Ok(None);
        }
        self.listening.brought.remove(at);
        // What came before the marker came from the listener.
        self.listening.aside.clear();
        Ok(Some(ReplyAction::Skip))
    }

    /// From here on the session's notifications come through the listener.
    fn on_moved(&mut self, sides: &mut Sides<'_>) -> Scan<Option<ReplyAction>> {
        if !self.end_subscription(sides)? {
            return Ok(None);
        }
        if let Away::Marking(member, _) = std::mem::replace(&mut self.listening.away, Away::Marked)
        {
            sides.memory.subscription = Some(Box::new(member));
        }
        Ok(Some(ReplyAction::Skip))
    }

    /// What the subscription had for the session up to the marker goes first; false until it is all there.
    fn end_subscription(&mut self, sides: &mut Sides<'_>) -> Scan<bool> {
        let Some(subscription) = &sides.memory.subscription else {
            return Ok(true);
        };
        if !self.listening.abandoned {
            // In this order: what is lost is told before the end.
            let has_ended = subscription.has_ended();
            if let Some(fault) = subscription.fault() {
                return Err(RelayEnd::Unheard(fault));
            }
            if !has_ended {
                return Ok(false);
            }
            self.deliver(sides, usize::MAX);
        }
        sides.memory.subscription = None;
        Ok(true)
    }

    /// Puts what has come through the listener before what is unread; true if there was anything.
    pub(in crate::session::relay) fn deliver(
        &mut self,
        sides: &Sides<'_>,
        bytes_max: usize,
    ) -> bool {
        let Some(subscription) = &sides.memory.subscription else {
            return false;
        };
        let mut notifications = BytesMut::new();
        let some = subscription.take(&mut notifications, bytes_max);
        if some {
            // A client that has changed its client_encoding unseen would misread what is not ASCII: it is ended.
            if has_servers_encoding(sides.conn) || are_ascii(&notifications) {
                self.down.insert(&notifications);
            } else {
                self.listening.unsure = true;
            }
        }
        some
    }

    /// It is known whether what was brought has come into force.
    fn decide(&mut self, in_force: bool, sides: &mut Sides<'_>) -> Scan<()> {
        let aside = std::mem::take(&mut self.listening.aside);
        if in_force {
            // Before the marker or behind it? Only of the session's own is that sure.
            if aside.iter().any(|it| !it.own) {
                return Err(RelayEnd::ListeningUnknown);
            }
            self.deliver(sides, usize::MAX);
            sides.memory.subscription = None;
        } else if let Some(subscription) = &sides.memory.subscription {
            subscription.forget_markers();
        }
        for Aside { frame, .. } in aside.iter().filter(|it| in_force || !it.shared) {
            self.down.insert(frame);
        }
        Ok(())
    }

    /// The same for a client that keeps its backend and is at rest: as much as it reads.
    pub(in crate::session::relay) fn deliver_at_rest(&mut self, sides: &Sides<'_>) -> bool {
        !self.down.must_drain() && self.deliver(sides, DELIVERED_MAX)
    }

    /// ReadyForQuery is next, for the client. What has come for it goes first; what it has sent itself is among that,
    /// as it would be without us: then a marker is sent behind it, and ReadyForQuery waits. With more in flight, which may
    /// open a transaction, it does not. True if it waits.
    pub(in crate::session::relay) fn before_ready(&mut self, sides: &mut Sides<'_>) -> bool {
        if sides.conn.status != TxStatus::Idle {
            return false;
        }
        let notified = std::mem::take(&mut self.listening.notified);
        let Some(subscription) = &sides.memory.subscription else {
            return false;
        };
        let fence = notified
            && self.replies.is_settled()
            && self.requests.at_boundary()
            && !self.keeps_long_unnamed(sides);
        if fence {
            let marker = sides.memory.listeners.marker();
            subscription.pass_at(&marker);
            self.insert_query(&notify(&marker), Expect::Listen, sides.up);
            self.unnamed_here = false; // it is a simple query
            self.listening.owes_ready = true;
        } else {
            self.deliver(sides, usize::MAX);
        }
        fence
    }

    /// ReadyForQuery is next. False while what must come before it comes through the listener.
    pub(in crate::session::relay) fn may_be_ready(&mut self, sides: &mut Sides<'_>) -> Scan<bool> {
        if self.replies.is_listening() && !self.pay_ready(sides)? {
            return Ok(false);
        }
        if sides.conn.status == TxStatus::Idle {
            self.resolve(sides)
        } else {
            Ok(true)
        }
    }

    /// Our marker's own ReadyForQuery is next. False while the marker has not come through the listener.
    fn pay_ready(&mut self, sides: &mut Sides<'_>) -> Scan<bool> {
        if !self.listening.owes_ready {
            return Ok(true);
        }
        if let Some(subscription) = &sides.memory.subscription
            && !self.listening.abandoned
        {
            if let Some(fault) = subscription.fault() {
                return Err(RelayEnd::Unheard(fault));
            }
            if !subscription.has_passed() {
                return Ok(false);
            }
            self.deliver(sides, usize::MAX);
        }
        self.listening.owes_ready = false;
        let mut ready = BytesMut::new();
        encode::ready_for_query(&mut ready, b'I');
        self.down.insert(&ready);
        Ok(true)
    }

    /// A transaction has ended in which channels were brought, and this backend has not heard the marker: that was rolled
    /// back, or the client's UNLISTEN * ended it. (A backend's own notifications go before ReadyForQuery:
    /// src/backend/tcop/postgres.c, `PostgresMain`.) The listener has heard it, or not, by when it hears another one. False
    /// until then.
    fn resolve(&mut self, sides: &mut Sides<'_>) -> Scan<bool> {
        if self.listening.brought.is_empty() {
            return Ok(true);
        }
        if let Some(subscription) = &sides.memory.subscription
            && !self.listening.abandoned
        {
            if let Some(fault) = subscription.fault() {
                return Err(RelayEnd::Unheard(fault));
            }
            if self.listening.unsure {
                return Err(RelayEnd::ListeningUnknown);
            }
            if self.listening.asked.is_none() {
                let marker = sides.memory.listeners.marker();
                subscription.pass_at(&marker);
                self.listening.asked = Some(Box::pin(sleep(JOIN_DEADLINE)));
                self.insert_query(&notify(&marker), Expect::Listen, sides.up);
                self.unnamed_here = false; // it is a simple query
                return Ok(false);
            }
            if !subscription.has_passed() {
                return Ok(false);
            }
            let has_ended = subscription.has_ended();
            if let Some(fault) = subscription.fault() {
                return Err(RelayEnd::Unheard(fault));
            }
            self.decide(has_ended, sides)?;
        }
        self.listening.asked = None;
        self.listening.brought.clear();
        self.listening.rolled_back = false;
        Ok(true)
    }
}

/// Notifications whose texts are the same in every encoding.
fn are_ascii(mut frames: &[u8]) -> bool {
    while let Ok(Some(header)) = Header::parse(frames) {
        let Some((frame, rest)) = frames.split_at_checked(header.frame_len()) else {
            return false;
        };
        // Behind the header stands the sender's process id.
        if !frame.get(HEADER_LEN + 4..).is_some_and(<[u8]>::is_ascii) {
            return false;
        }
        frames = rest;
    }
    true
}
