//! From a backend that listens to the shared listener, step by step.

use super::super::down::malformed;
use super::super::{READ_WHOLE_MAX, Relay, RelayEnd, Scan, Sides};
use super::{Away, JOIN_DEADLINE, has_servers_encoding};
use crate::session::listen::{Joined, MARKER_CHANNEL, Membership, listen, notify};
use crate::session::pin::{PinReason, PinReasons};
use crate::session::relay::Hold;
use crate::session::replies::{Expect, ReplyAction};
use crate::wire::frame::{HEADER_LEN, Header};
use crate::wire::from_backend::ServerError;
use tokio::time::sleep;

impl Relay {
    /// A query of ours about channels was refused.
    pub(in crate::session::relay) fn on_listening_error(
        &mut self,
        header: Header,
        sides: &Sides<'_>,
    ) -> Scan<Option<ReplyAction>> {
        let Some(body) = self.down.unread().get(HEADER_LEN..header.frame_len()) else {
            let comes = header.body_len <= READ_WHOLE_MAX;
            return if comes {
                Ok(None)
            } else {
                Err(malformed(header))
            };
        };
        let words = ServerError::parse(body);
        match std::mem::take(&mut self.listening.away) {
            // The client's own notifications come when they come.
            Away::No if self.listening.owes_ready => {
                if let Some(subscription) = &sides.memory.subscription {
                    subscription.forget_markers();
                }
            }
            // What the request would do without its channels can't be told.
            Away::No | Away::Joining(..) => return Err(RelayEnd::ChannelsRefused(words)),
            // Nothing has moved.
            Away::Marking(..) | Away::Founding(_) => {}
            Away::Marked | Away::Clearing => {
                self.listening.away = Away::Clearing;
                self.state.leaked = true;
            }
        }
        let action = self.replies.on_reply(b'E');
        action
            .map(Some)
            .map_err(|error| RelayEnd::BackendFault(error.into()))
    }

    /// At rest and idle, with the survey answered: moves the session's channels to the listener, step by step. True while
    /// something is to be sent.
    pub(in crate::session::relay) fn settle_listening(
        &mut self,
        sides: &mut Sides<'_>,
    ) -> Scan<bool> {
        if self.listening.unsure {
            return Err(RelayEnd::ListeningUnknown);
        }
        match std::mem::take(&mut self.listening.away) {
            Away::No => self.move_away(sides),
            Away::Joining(member, _) if member.is_heard() => Ok(self.mark(member, sides)),
            Away::Joining(member, deadline) => {
                if member.fault().is_none() {
                    self.listening.away = Away::Joining(member, deadline);
                }
                Ok(false)
            }
            // It was refused.
            Away::Marking(..) => Ok(false),
            Away::Marked => Ok(self.clear(sides)),
            Away::Founding(founding) => Err(RelayEnd::Founds(founding)),
            Away::Clearing => {
                self.state.pins.remove(PinReason::Listen);
                Ok(false)
            }
        }
    }

    fn move_away(&mut self, sides: &mut Sides<'_>) -> Scan<bool> {
        if sides.memory.subscription.is_some() && !has_servers_encoding(sides.conn) {
            // It has changed: the listener's notifications are not for it any more.
            self.bring_in_query(sides);
            self.listening.for_request = false;
            return Ok(true);
        }
        let Some(mut channels) = self.listening.found.take() else {
            return Ok(false);
        };
        if self.hold == Hold::Session || !self.state.pins.contains(PinReason::Listen) {
            return Ok(false);
        }
        channels.retain(|channel| **channel != *MARKER_CHANNEL);
        if channels.is_empty() {
            return Ok(self.clear(sides));
        }
        if let Some(subscription) = &sides.memory.subscription {
            // LISTEN only adds: what was shared before still counts.
            let shared = subscription.channels().iter();
            let more: Vec<_> = shared
                .filter(|it| !channels.contains(it))
                .cloned()
                .collect();
            channels.extend(more);
        }
        if !has_servers_encoding(sides.conn) {
            return Ok(false);
        }
        let mut alone = PinReasons::default();
        alone.insert(PinReason::Listen);
        let may_found = self.state.pins == alone && !self.state.leaked;
        let memory = &sides.memory;
        match memory.listeners.join(&memory.pool, channels, may_found) {
            Joined::Refused => Ok(false),
            Joined::Founder(founding) => {
                self.listening.away = Away::Founding(founding);
                self.insert_query(&listen(MARKER_CHANNEL), Expect::Listen, sides.up);
                self.unnamed_here = false; // it is a simple query
                Ok(true)
            }
            Joined::Member(member) if member.is_heard() => Ok(self.mark(member, sides)),
            Joined::Member(member) => {
                let deadline = Box::pin(sleep(JOIN_DEADLINE));
                self.listening.away = Away::Joining(member, deadline);
                // Looked at once more, to be woken.
                Ok(true)
            }
        }
    }

    fn mark(&mut self, member: Membership, sides: &mut Sides<'_>) -> bool {
        let marker = sides.memory.listeners.marker();
        if let Some(subscription) = &sides.memory.subscription {
            subscription.end_at(&marker);
        }
        member.begin_at(&marker);
        let sql = [listen(MARKER_CHANNEL), notify(&marker)].join(&b';');
        self.listening.away = Away::Marking(member, marker);
        self.insert_query(&sql, Expect::Listen, sides.up);
        self.unnamed_here = false; // it is a simple query
        true
    }

    fn clear(&mut self, sides: &mut Sides<'_>) -> bool {
        self.listening.away = Away::Clearing;
        self.insert_query("UNLISTEN *", Expect::Listen, sides.up);
        self.unnamed_here = false; // it is a simple query
        true
    }
}
