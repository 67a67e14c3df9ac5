//! A difference made small: sessions, steps and messages are left out as long as there is one.

use super::script::{Message, Script};
use super::seen::Difference;
use super::worlds::Worlds;
use std::time::Duration;
use tokio::time::Instant;

/// Then what is left is small enough.
const WITHIN: Duration = Duration::from_secs(60);

/// How often something smaller is tried before it counts as without a difference: others must come at the right time.
const TRIES: u64 = 4;

/// So many of the same session at a time differ sooner.
const COPIES: usize = 4;

pub struct Shrink<'a> {
    worlds: &'a Worlds,
    end: Instant,
    pub scripts: Vec<Script>,
    pub found: Difference,
    /// One session, run in copies.
    alone: bool,
}

impl<'a> Shrink<'a> {
    pub async fn of(worlds: &'a Worlds, scripts: Vec<Script>, found: Difference) -> Self {
        let mut shrink = Self {
            worlds,
            end: Instant::now() + WITHIN,
            scripts,
            found,
            alone: true,
        };
        shrink.alone = shrink.session_alone().await;
        if !shrink.alone {
            shrink.sessions().await;
        }
        for session in 0..shrink.scripts.len() {
            shrink.steps(session).await;
            shrink.messages(session).await;
        }
        shrink
    }

    /// Takes these in the place of what there is, if they differ, too.
    async fn try_instead(&mut self, scripts: Vec<Script>) -> bool {
        if Instant::now() > self.end {
            return false;
        }
        let run = match self.alone {
            true => vec![scripts[0].clone(); COPIES],
            false => scripts.clone(),
        };
        for attempt in 0..TRIES {
            let found = self.worlds.differences(&run, attempt).await;
            if let Some(mut found) = found.into_iter().next() {
                if self.alone {
                    found.session = 0;
                }
                (self.scripts, self.found) = (scripts, found);
                return true;
            }
        }
        false
    }

    async fn session_alone(&mut self) -> bool {
        let script = self.scripts[self.found.session].clone();
        self.try_instead(vec![script]).await
    }

    async fn sessions(&mut self) {
        let mut session = 0;
        while session < self.scripts.len() && self.scripts.len() > 1 {
            let mut fewer = self.scripts.clone();
            fewer.remove(session);
            if !self.try_instead(fewer).await {
                session += 1;
            }
        }
    }

    /// Long runs of steps first.
    async fn steps(&mut self, session: usize) {
        let mut len = self.scripts[session].steps.len();
        while len > 0 {
            let mut from = 0;
            while from < self.scripts[session].steps.len() {
                let mut fewer = self.scripts.clone();
                let to = (from + len).min(fewer[session].steps.len());
                fewer[session].steps.drain(from..to);
                if !self.try_instead(fewer).await {
                    from += len;
                }
            }
            len /= 2;
        }
    }

    /// Messages but for Syncs, without which a batch is another; and startup parameters.
    async fn messages(&mut self, session: usize) {
        for step in 0..self.scripts[session].steps.len() {
            let mut message = 0;
            while message < self.scripts[session].steps[step].0.len() {
                let mut fewer = self.scripts.clone();
                let ends = fewer[session].steps[step].0.remove(message) == Message::Sync;
                if ends || !self.try_instead(fewer).await {
                    message += 1;
                }
            }
        }
        let mut parameter = 0;
        while parameter < self.scripts[session].startup.len() {
            let mut fewer = self.scripts.clone();
            fewer[session].startup.remove(parameter);
            if !self.try_instead(fewer).await {
                parameter += 1;
            }
        }
    }
}
