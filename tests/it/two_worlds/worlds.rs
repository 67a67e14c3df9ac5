//! PostgreSQL, and a small pool before it in which many others are busy.

use super::grammar::{self, Random};
use super::script::{Script, Step, TAG};
use super::seen::{Difference, Seen};
use crate::support::{Database, Frame, PASSWORD, Proxy, ROLE, RawClient, database, frames, proxy};
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Sessions that run at the same time.
pub const SESSIONS: usize = 16;

/// Backends of the pool.
const BACKENDS: u32 = 3;

const STEP_WITHIN: Duration = Duration::from_secs(20);

/// Schemas with a table of the same name; functions that change settings in ways the text that calls them does not show.
const FIXTURE: &str = "
    CREATE SCHEMA one; CREATE TABLE one.t AS SELECT 'one' AS v;
    CREATE SCHEMA two; CREATE TABLE two.t AS SELECT 'two' AS v;
    GRANT USAGE ON SCHEMA one, two TO public;
    GRANT SELECT ON one.t, two.t TO public;
    CREATE FUNCTION public.within(int) RETURNS text LANGUAGE sql SET work_mem = '2MB'
        AS $$ SELECT pg_catalog.current_setting('work_mem') || $1 $$;
    CREATE FUNCTION public.sets_local() RETURNS text LANGUAGE plpgsql
        AS $$ BEGIN RETURN pg_catalog.set_config('work_mem', '12MB', true); END $$;
    CREATE PROCEDURE public.sets(value text) LANGUAGE plpgsql
        AS $$ BEGIN SET work_mem = '13MB'; PERFORM pg_catalog.set_config('app.c', value, false); END $$;";

pub struct Worlds {
    db: Database,
    proxy: Proxy,
    pub role: String,
    /// Sessions that are looked at by nobody, so that others never have the pool to themselves.
    noise: Arc<Vec<Script>>,
    next_tag: AtomicU64,
}

impl Worlds {
    pub async fn new() -> Self {
        let db = database().await;
        let role = db.role("other", "secret").await;
        db.execute(FIXTURE).await;
        // A line for each login would hide what differs.
        let proxy = proxy().set("log.level", "warn");
        let proxy = proxy.max_connections(BACKENDS).start().await;
        let noise = (0..SESSIONS as u64)
            .map(|seed| grammar::script(seed, &role))
            .collect();
        Self {
            db,
            proxy,
            role,
            noise: Arc::new(noise),
            next_tag: AtomicU64::new(10_000_000),
        }
    }

    fn run(
        &self,
        address: SocketAddr,
        script: Script,
        pauses: Option<Random>,
    ) -> impl Future<Output = Seen> + use<> {
        let tag = self.next_tag.fetch_add(1, Ordering::Relaxed);
        let mut run = Run {
            address,
            database: self.db.name.clone(),
            tag: tag.to_string(),
            pauses,
            seen: Seen::default(),
        };
        async move {
            run.script(&script).await;
            run.seen
        }
    }

    async fn directly(&self, scripts: &[Script]) -> Vec<Seen> {
        let mut running = JoinSet::new();
        for (number, script) in scripts.iter().cloned().enumerate() {
            let run = self.run(self.db.server.address, script, None);
            running.spawn(async move { (number, run.await) });
        }
        in_order(running).await
    }

    async fn through(&self, scripts: &[Script], seed: u64) -> Vec<Seen> {
        let mut noise = JoinSet::new();
        for number in scripts.len()..SESSIONS {
            let script = self.noise[number].clone();
            let pauses = Random(seed ^ number as u64);
            noise.spawn(self.run(self.proxy.address, script, Some(pauses)));
        }
        let mut running = JoinSet::new();
        for (number, script) in scripts.iter().cloned().enumerate() {
            let pauses = Random(seed ^ number as u64);
            let run = self.run(self.proxy.address, script, Some(pauses));
            running.spawn(async move { (number, run.await) });
        }
        in_order(running).await
        // Noise that still runs is cut off, as clients are.
    }

    /// The first difference of each session.
    pub async fn differences(&self, scripts: &[Script], seed: u64) -> Vec<Difference> {
        let directly = self.directly(scripts).await;
        let through = self.through(scripts, seed).await;
        let pairs = directly.iter().zip(&through).zip(scripts).enumerate();
        pairs
            .filter_map(|(session, ((directly, through), script))| {
                directly.difference(through, session, script)
            })
            .collect()
    }
}

async fn in_order(running: JoinSet<(usize, Seen)>) -> Vec<Seen> {
    let mut seen = running.join_all().await;
    seen.sort_by_key(|(number, _)| *number);
    seen.into_iter().map(|(_, seen)| seen).collect()
}

/// One session in one of the worlds.
struct Run {
    address: SocketAddr,
    database: String,
    tag: String,
    /// How long its client thinks between steps: others get its backend meanwhile.
    pauses: Option<Random>,
    seen: Seen,
}

impl Run {
    async fn script(&mut self, script: &Script) {
        let startup: Vec<(&str, &str)> = (script.startup.iter())
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let mut client =
            RawClient::login(self.address, &self.database, ROLE, PASSWORD, &startup).await;
        let welcome = std::mem::take(&mut client.welcome);
        let welcome = welcome.into_iter().filter(|frame| frame.tag != b'K');
        self.seen.take(welcome.collect(), &self.tag);
        for step in &script.steps {
            self.think().await;
            if !self.step(&mut client, step).await {
                return;
            }
        }
        if script.listens() {
            self.all_notifications(&mut client).await;
        }
        // Its locks are gone when its connection is.
        client.send(&frames::terminate()).await;
        client.rest().await;
    }

    async fn think(&mut self) {
        if let Some(pauses) = &mut self.pauses
            && pauses.percent(30)
        {
            sleep(Duration::from_micros(pauses.next() % 1000)).await;
        }
    }

    /// False at the end of the connection.
    async fn step(&mut self, client: &mut RawClient, step: &Step) -> bool {
        let mut frames = Vec::new();
        let bytes = step.bytes(&self.tag);
        let whole = answers(client, &bytes, step.answers(), &mut frames);
        let whole = timeout(STEP_WITHIN, whole).await == Ok(true);
        if !whole {
            let body = Bytes::from_static(b"the end, or too long without an answer");
            frames.push(Frame { tag: b'!', body });
        }
        self.seen.take(frames, &self.tag);
        whole
    }

    /// Waits for those that are under way: they come in the order of commits, so none comes behind one of its own.
    async fn all_notifications(&mut self, client: &mut RawClient) {
        let marker = format!("marker_{TAG}");
        let listen = format!("LISTEN {marker}");
        let notify = format!("NOTIFY {marker}");
        for sql in ["ROLLBACK", "RESET ALL", &listen, &notify] {
            if !self.step(client, &Step::query(sql)).await {
                return;
            }
            // Answers to these tell nothing.
            self.seen.steps.pop();
        }
        let is_marker = |frame: &Frame| frame.body.starts_with(b"marker_");
        while !self.seen.notifications.iter().any(is_marker) {
            let Ok(Ok(Some(frame))) = timeout(STEP_WITHIN, client.next_frame()).await else {
                return;
            };
            self.seen.take(vec![frame], &self.tag);
            self.seen.steps.pop();
        }
    }
}

/// False at the end of the connection.
async fn answers(
    client: &mut RawClient,
    bytes: &[u8],
    mut left: usize,
    frames: &mut Vec<Frame>,
) -> bool {
    if client.try_send(bytes).await.is_err() {
        return false;
    }
    while left > 0 {
        let Ok(Some(frame)) = client.next_frame().await else {
            return false;
        };
        left -= usize::from(frame.tag == b'Z');
        frames.push(frame);
    }
    true
}
