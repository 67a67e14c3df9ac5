//! Stopping in order: one [`Drain`] decides, every [`DrainWatch`] complies.
//!
//! A watch is held by whatever must have ended before the process may: sessions, listeners, backends being closed.
//! The drain is over when every watch has been dropped.

use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How far the stopping has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// Serving.
    Running,
    /// No new clients; what runs may finish.
    Draining,
    /// End now.
    Aborting,
}

/// The one who decides.
pub struct Drain {
    phase: watch::Sender<Phase>,
    held: mpsc::Receiver<()>,
    template: mpsc::Sender<()>,
}

/// Held by everyone who must have ended before the process does.
#[derive(Clone)]
pub struct DrainWatch {
    phase: watch::Receiver<Phase>,
    held: mpsc::Sender<()>,
}

/// Sees what a [`DrainWatch`] sees without being waited for; makes watches while anybody else still holds one.
#[derive(Clone)]
pub struct DrainObserver {
    phase: watch::Receiver<Phase>,
    held: mpsc::WeakSender<()>,
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// Nothing drains yet.
    pub fn new() -> Self {
        let (template, held) = mpsc::channel(1);
        Self {
            phase: watch::channel(Phase::Running).0,
            held,
            template,
        }
    }

    /// A watch for a task.
    pub fn watch(&self) -> DrainWatch {
        DrainWatch {
            phase: self.phase.subscribe(),
            held: self.template.clone(),
        }
    }

    /// An observer for what lives as long as the process.
    pub fn observer(&self) -> DrainObserver {
        self.watch().observer()
    }

    /// Moves on; never back.
    pub fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let later = to > *phase;
            *phase = (*phase).max(to);
            later
        });
    }

    /// Waits until every watch is dropped; `false` if the deadline passed first.
    pub async fn wait(&mut self, deadline: Duration) -> bool {
        // Our own sender must not keep the channel open.
        let (unused, _) = mpsc::channel(1);
        self.template = unused;
        tokio::time::timeout(deadline, self.held.recv())
            .await
            .is_ok()
    }
}

impl DrainWatch {
    /// How far the stopping has come.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until the stopping has come to `phase`. Cancel-safe.
    pub async fn reached(&mut self, phase: Phase) {
        // An error means the Drain is gone: the process is ending.
        let _ = self.phase.wait_for(|now| *now >= phase).await;
    }
}

impl DrainWatch {
    /// An observer of the same drain.
    pub fn observer(&self) -> DrainObserver {
        DrainObserver {
            phase: self.phase.clone(),
            held: self.held.downgrade(),
        }
    }
}

impl DrainObserver {
    /// How far the stopping has come.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until the stopping has come to `phase`. Cancel-safe.
    pub async fn reached(&mut self, phase: Phase) {
        let _ = self.phase.wait_for(|now| *now >= phase).await;
    }

    /// A watch for a task that must have ended before the process; `None` when the drain is already over.
    pub fn watch(&self) -> Option<DrainWatch> {
        let held = self.held.upgrade()?;
        Some(DrainWatch {
            phase: self.phase.clone(),
            held,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_every_watch_but_not_for_ever() {
        let mut drain = Drain::new();
        let mut first = drain.watch();
        let second = first.clone();
        drain.advance(Phase::Draining);
        drain.advance(Phase::Running);
        first.reached(Phase::Draining).await;
        assert_eq!(second.phase(), Phase::Draining);
        drop(first);
        assert!(!drain.wait(Duration::from_secs(5)).await);
        drop(second);
        assert!(drain.wait(Duration::from_secs(5)).await);
    }
}
