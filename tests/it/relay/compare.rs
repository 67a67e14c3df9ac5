//! Runs one script against PostgreSQL and through the proxy, and compares what comes back.

use crate::support::{Database, Frame, Proxy, RawClient, database, proxy};

/// What a client does next.
pub enum Step {
    /// Sends these bytes in one write.
    Send(Vec<u8>),
    /// Reads up to the nth ReadyForQuery.
    Ready(usize),
    /// Reads up to the first frame of that kind.
    Until(u8),
    /// Reads to the end of the connection.
    End,
}

use Step::{End, Ready, Send, Until};

/// Tables that scripts use: made once, so that their numbers are the same both times.
const FIXTURE: &str = "
    CREATE TABLE items (id int PRIMARY KEY, name text);
    INSERT INTO items SELECT i, 'item ' || i FROM generate_series(1, 200) i;
    CREATE TABLE target (id int, name text CHECK (name <> 'bad'));
";

/// A database with the fixture, and a proxy before it.
pub struct Pair {
    pub db: Database,
    pub proxy: Proxy,
}

impl Pair {
    pub async fn new() -> Self {
        let db = database().await;
        db.execute(FIXTURE).await;
        let proxy = proxy().max_connections(2).start().await;
        Self { db, proxy }
    }

    /// Runs the script both ways; returns the frames, which are the same.
    pub async fn same(&self, script: &[Step]) -> Vec<Frame> {
        self.db.execute("TRUNCATE target").await;
        let directly = run(self.db.raw().await, script).await;
        self.db.execute("TRUNCATE target").await;
        let through = run(self.proxy.raw(&self.db).await, script).await;
        for (index, (expected, got)) in directly.iter().zip(&through).enumerate() {
            assert_eq!(
                got, expected,
                "frame {index} of\n{directly:#?}\nand\n{through:#?}"
            );
        }
        assert_eq!(through.len(), directly.len(), "{directly:#?}\n{through:#?}");
        through
    }

    /// The same for bytes that end in one ReadyForQuery.
    pub async fn same_answer(&self, bytes: Vec<u8>) -> Vec<Frame> {
        self.same(&[Send(bytes), Ready(1)]).await
    }

    /// The same for a simple query.
    pub async fn same_query(&self, sql: &str) -> Vec<Frame> {
        self.same_answer(crate::support::frames::query(sql)).await
    }
}

async fn run(mut client: RawClient, script: &[Step]) -> Vec<Frame> {
    let mut frames = Vec::new();
    for step in script {
        match step {
            Send(bytes) => client.send(bytes).await,
            Ready(count) => {
                for _ in 0..*count {
                    frames.extend(client.ready().await);
                }
            }
            Until(tag) => frames.extend(client.until(*tag).await),
            End => frames.extend(client.rest().await),
        }
    }
    frames.into_iter().map(without_pid).collect()
}

/// A notification names the backend that sent it.
fn without_pid(mut frame: Frame) -> Frame {
    if frame.tag == b'A' {
        frame.body = frame.body.slice(4..);
    }
    frame
}
