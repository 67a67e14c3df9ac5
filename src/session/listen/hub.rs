//! What one listener hears, and for whom. Sessions join, are served from one marker on and until another, and leave; the
//! listener's task asks what to LISTEN to. No I/O.

use super::inbox::{Fault, Inbox};
use super::sql::{Channel, MARKER_CHANNEL, Marker, Notification};
use crate::metrics::ListenGuard;
use bytes::{Bytes, BytesMut};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use tokio::sync::Notify;

/// Channels in one query: what is sent to a server that may be sending, too, must fit into the system's buffers.
const CHANGES_MAX: usize = 64;

/// One listener's book.
#[derive(Debug, Default)]
pub(super) struct Hub {
    state: Mutex<State>,
    /// Something is to be done by the task.
    pub(super) news: Notify,
}

#[derive(Debug, Default)]
struct State {
    members: HashMap<u64, Member>,
    arrivals: u64,
    /// How many members want a channel, served or not.
    wanted: HashMap<Channel, usize>,
    /// Whom a channel's notifications go to.
    served: HashMap<Channel, HashMap<u64, Arc<Inbox>>>,
    /// What the server has confirmed.
    listening: HashSet<Channel>,
    /// Whose serving begins or ends at a marker.
    turns: HashMap<Bytes, Vec<(u64, Turn)>>,
    over: bool,
}

#[derive(Debug)]
struct Member {
    inbox: Arc<Inbox>,
    channels: Arc<[Channel]>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    Begin,
    End,
    Pass,
}

/// What the server is to be told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) listen: Vec<Channel>,
    pub(super) unlisten: Vec<Channel>,
}

/// A session's place at a hub; dropping it leaves.
#[derive(Debug)]
pub struct Membership {
    hub: Arc<Hub>,
    id: u64,
    inbox: Arc<Inbox>,
    channels: Arc<[Channel]>,
    /// Counts it in the metrics.
    counted: Option<ListenGuard>,
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more who wants channels; not served yet. `None` if the listener is gone.
    pub(super) fn join(self: &Arc<Self>, channels: Vec<Channel>) -> Option<Membership> {
        let mut state = self.lock();
        if state.over {
            return None;
        }
        let (inbox, channels) = (Arc::<Inbox>::default(), Arc::from(channels));
        let id = state.arrivals;
        state.arrivals += 1;
        state.enter(id, &inbox, &channels);
        drop(state);
        self.news.notify_one();
        Some(Membership {
            hub: self.clone(),
            id,
            inbox,
            channels,
            counted: None,
        })
    }

    /// The connection has come from a session that is a member: it hears that one's channels already, and that one is
    /// served from the start.
    pub(super) fn begin_with(&self, founder: &Membership) {
        let mut state = self.lock();
        state.listening.extend(founder.channels.iter().cloned());
        state.serve(founder.id);
    }

    /// What is to be changed, if anything is; it will be sent. What goes is not heard from here on: who joins meanwhile
    /// must have it anew.
    pub(super) fn take_changes(&self) -> Option<Changes> {
        let mut state = self.lock();
        let listen = state
            .wanted
            .keys()
            .filter(|it| !state.listening.contains(*it));
        let listen: Vec<_> = listen.take(CHANGES_MAX).cloned().collect();
        let unlisten = state
            .listening
            .iter()
            .filter(|it| !state.wanted.contains_key(*it));
        let unlisten: Vec<_> = unlisten.take(CHANGES_MAX).cloned().collect();
        for channel in &unlisten {
            state.listening.remove(channel);
        }
        (!listen.is_empty() || !unlisten.is_empty()).then_some(Changes { listen, unlisten })
    }

    /// The server has carried them out.
    pub(super) fn confirmed(&self, changes: Changes) {
        let mut state = self.lock();
        state.listening.extend(changes.listen);
        for member in state.members.values() {
            if member
                .channels
                .iter()
                .all(|it| state.listening.contains(it))
            {
                member.inbox.set_heard();
            }
        }
    }

    /// A notification was heard; returns to how many it went.
    pub(super) fn deliver(&self, notification: Notification<'_>, frame: &Bytes) -> usize {
        let mut state = self.lock();
        if notification.channel == MARKER_CHANNEL {
            state.pass_marker(notification.payload);
            return 0;
        }
        let Some(served) = state.served.get(notification.channel) else {
            return 0;
        };
        served.values().for_each(|inbox| inbox.push(frame));
        served.len()
    }

    /// Nobody is there; then the connection is about to be cleaned, and hears nothing from here on.
    pub(super) fn is_unused(&self) -> bool {
        let mut state = self.lock();
        let unused = state.members.is_empty();
        if unused {
            state.listening.clear();
        }
        unused
    }

    /// The end, if nobody is there.
    pub(super) fn retire(&self) -> bool {
        let mut state = self.lock();
        state.over = state.members.is_empty();
        state.over
    }

    /// The end, whoever is there.
    pub(super) fn close(&self, fault: &Fault) {
        let mut state = self.lock();
        state.over = true;
        for member in state.members.values() {
            member.inbox.fail(fault.clone());
        }
    }
}

impl State {
    fn enter(&mut self, id: u64, inbox: &Arc<Inbox>, channels: &Arc<[Channel]>) {
        for channel in channels.iter() {
            *self.wanted.entry(channel.clone()).or_default() += 1;
        }
        if channels.iter().all(|it| self.listening.contains(it)) {
            inbox.set_heard();
        }
        let member = Member {
            inbox: inbox.clone(),
            channels: channels.clone(),
        };
        self.members.insert(id, member);
    }

    fn serve(&mut self, id: u64) {
        let Some(member) = self.members.get(&id) else {
            return;
        };
        for channel in member.channels.iter() {
            let served = self.served.entry(channel.clone()).or_default();
            served.insert(id, member.inbox.clone());
        }
    }

    fn pass_marker(&mut self, payload: &[u8]) {
        for (id, turn) in self.turns.remove(payload).unwrap_or_default() {
            match turn {
                Turn::Begin => self.serve(id),
                Turn::Pass => {
                    if let Some(member) = self.members.get(&id) {
                        member.inbox.set_passed();
                    }
                }
                Turn::End => {
                    if let Some(member) = self.stop_serving(id) {
                        member.set_ended();
                    }
                }
            }
        }
    }

    fn stop_serving(&mut self, id: u64) -> Option<Arc<Inbox>> {
        let member = self.members.get(&id)?;
        for channel in member.channels.iter() {
            if let Some(served) = self.served.get_mut(channel) {
                served.remove(&id);
                if served.is_empty() {
                    self.served.remove(channel);
                }
            }
        }
        Some(member.inbox.clone())
    }

    fn leave(&mut self, id: u64) {
        self.stop_serving(id);
        self.forget_turns(id, |_| true);
        let Some(member) = self.members.remove(&id) else {
            return;
        };
        for channel in member.channels.iter() {
            if let Some(count) = self.wanted.get_mut(channel) {
                *count -= 1;
                if *count == 0 {
                    self.wanted.remove(channel);
                }
            }
        }
    }

    fn forget_turns(&mut self, id: u64, is_gone: impl Fn(&Turn) -> bool) {
        self.turns.retain(|_, turns| {
            turns.retain(|(other, turn)| *other != id || !is_gone(turn));
            !turns.is_empty()
        });
    }
}

impl Membership {
    /// Counted until it is dropped.
    pub(super) fn count(&mut self, guard: ListenGuard) {
        self.counted = Some(guard);
    }

    /// What it hears.
    pub fn channels(&self) -> &Arc<[Channel]> {
        &self.channels
    }

    /// From the marker on it is served.
    pub fn begin_at(&self, marker: &Marker) {
        self.turn(marker, Turn::Begin);
    }

    /// At the marker its serving ends.
    pub fn end_at(&self, marker: &Marker) {
        self.turn(marker, Turn::End);
    }

    /// At the marker [`Self::has_passed`] becomes true, once more.
    pub fn pass_at(&self, marker: &Marker) {
        self.inbox.set_passing();
        self.turn(marker, Turn::Pass);
    }

    /// What came before the marker is here.
    pub fn has_passed(&self) -> bool {
        self.inbox.has_passed()
    }

    fn turn(&self, marker: &Marker, turn: Turn) {
        let mut state = self.hub.lock();
        let turns = state.turns.entry(marker.payload()).or_default();
        turns.push((self.id, turn));
    }

    /// Its markers will never come: what sent them was rolled back.
    pub fn forget_markers(&self) {
        // Where its serving begins has been passed, or will be.
        let is_gone = |turn: &Turn| !matches!(turn, Turn::Begin);
        self.hub.lock().forget_turns(self.id, is_gone);
        self.inbox.set_passed();
    }

    /// The next change of any of the following wakes `cx`.
    pub fn register(&self, cx: &Context<'_>) {
        self.inbox.register(cx);
    }

    /// The listener hears all it wants.
    pub fn is_heard(&self) -> bool {
        self.inbox.is_heard()
    }

    /// Its serving has ended: what is here is the last.
    pub fn has_ended(&self) -> bool {
        self.inbox.has_ended()
    }

    /// Why it can't be served any more.
    pub fn fault(&self) -> Option<Fault> {
        self.inbox.fault()
    }

    /// Moves what waits into `out`, at most about `bytes_max`; true if that was anything.
    pub fn take(&self, out: &mut BytesMut, bytes_max: usize) -> bool {
        self.inbox.take(out, bytes_max)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.hub.lock().leave(self.id);
        self.hub.news.notify_one();
    }
}

#[cfg(test)]
mod tests;
