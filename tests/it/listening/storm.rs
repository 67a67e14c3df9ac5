//! Notifications come without a pause while sessions listen, stop listening, and move.

use super::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const CHANNELS: u64 = 3;
const SESSIONS: u64 = 24;
const STEPS: usize = 40;

/// Sends a number to each channel in turn, one transaction a number, until it is told to stop. `next`: numbers from here
/// on are sent after it was read.
async fn speak(db: Arc<Database>, next: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let client = db.connect().await;
    while !stop.load(Ordering::SeqCst) {
        let number = next.fetch_add(1, Ordering::SeqCst);
        let sql = format!("NOTIFY c{}, '{number}'", number % CHANNELS);
        client.batch_execute(&sql).await.unwrap();
    }
}

/// One session's view: for each channel it listens to, what must have come by when, and what has come last.
struct Ear {
    client: RawClient,
    next: Arc<AtomicU64>,
    /// What is the first number that must be heard, and the last one heard.
    on: BTreeMap<u64, (u64, Option<u64>)>,
    last: Option<u64>,
    count: usize,
}

impl Ear {
    /// In order, each once, none left out, and none of what it does not listen to. `changing`: a channel whose LISTEN or
    /// UNLISTEN is being answered.
    fn hear(&mut self, frames: &[Frame], changing: Option<u64>) {
        for (channel, payload) in heard(frames) {
            let number: u64 = payload.parse().unwrap();
            assert_eq!(channel, format!("c{}", number % CHANNELS));
            assert!(self.last < Some(number), "{number} behind {:?}", self.last);
            self.last = Some(number);
            self.count += 1;
            let channel = number % CHANNELS;
            if !self.on.contains_key(&channel) && changing == Some(channel) {
                self.on.insert(channel, (u64::MAX, None));
            }
            let (first, last) = self.on.get_mut(&channel).expect("it listens");
            match *last {
                Some(last) => assert_eq!(number, last + CHANNELS, "c{channel}"),
                None => assert!(number < first.saturating_add(CHANNELS), "c{channel}"),
            }
            *last = Some(number);
        }
    }

    async fn step(&mut self, rng: &mut StdRng) {
        let channel = rng.random_range(0..CHANNELS);
        let (sql, listens) = match rng.random_range(0..8) {
            0 | 1 => (format!("LISTEN c{channel}"), Some(true)),
            2 => (format!("BEGIN; LISTEN c{channel}; COMMIT"), Some(true)),
            3 => (format!("UNLISTEN c{channel}"), Some(false)),
            4 => (
                format!("BEGIN; SAVEPOINT s; UNLISTEN c{channel}; ROLLBACK TO s; COMMIT"),
                None,
            ),
            5 => ("SELECT count(*) FROM pg_listening_channels()".into(), None),
            _ => ("SELECT pg_sleep(0.001)".into(), None),
        };
        let changing = listens.map(|_| channel);
        let answer = self.client.query(&sql).await;
        assert_eq!(errors(&answer), [""; 0], "{sql}");
        if sql.starts_with("SELECT count") {
            assert_eq!(column(&answer), [self.on.len().to_string()]);
        }
        self.hear(&answer, changing);
        let after = self.next.load(Ordering::SeqCst);
        match listens {
            Some(true) => {
                // The first of the channel that is surely sent later.
                let first = (after..).find(|it| it % CHANNELS == channel).unwrap();
                let on = self.on.entry(channel).or_insert((first, None));
                on.0 = on.0.min(first);
            }
            Some(false) => drop(self.on.remove(&channel)),
            None => {}
        }
    }

    /// Hears all that must come up to the last number of each channel.
    async fn finish(&mut self, end: u64) {
        loop {
            let behind = self.on.iter().any(|(channel, (first, last))| {
                let newest = (0..end).rev().find(|it| it % CHANNELS == *channel);
                newest.is_some_and(|newest| newest >= *first && *last != Some(newest))
            });
            if !behind {
                return;
            }
            let frame = self.client.frame().await;
            assert_eq!(frame.tag, b'A', "{frame:?}");
            self.hear(&[frame], None);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_while_sessions_move() {
    let db = Arc::new(database().await);
    let proxy = proxy().max_connections(5).start().await;
    let (next, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
    let speaker = tokio::spawn(speak(db.clone(), next.clone(), stop.clone()));
    let mut ears = Vec::new();
    for seed in 0..SESSIONS {
        let mut ear = Ear {
            client: proxy.raw(&db).await,
            next: next.clone(),
            on: BTreeMap::new(),
            last: None,
            count: 0,
        };
        ears.push(tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(seed);
            for _ in 0..STEPS {
                ear.step(&mut rng).await;
            }
            ear
        }));
    }
    let mut still = Vec::new();
    for ear in ears {
        still.push(ear.await.unwrap());
    }
    stop.store(true, Ordering::SeqCst);
    speaker.await.unwrap();
    let end = next.load(Ordering::SeqCst);
    let mut count = 0;
    for ear in &mut still {
        ear.finish(end).await;
        count += ear.count;
    }
    assert!(count > 1000, "{count} notifications of {end} are no storm");
    assert_eq!(pins(&proxy).await, 0.0);
    assert!(
        observer().await.backends(&db).await <= 6,
        "the speaker, and five"
    );
}
