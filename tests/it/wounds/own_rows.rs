//! Slow readers, cancels, timeouts, vanishing clients, killed backends and full queues, all at once: whoever gets an
//! answer gets its own.

use crate::support::frames::{Frame, bind, execute, extended, flush, parse, query, sync};
use crate::support::{Database, Observer, Proxy, RawClient, database, observer, proxy};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

const CLIENTS: usize = 24;
const TURMOIL_FOR: Duration = Duration::from_secs(8);

/// No answer takes longer: there are timeouts.
const ANSWERED_WITHIN: Duration = Duration::from_secs(15);

static NEXT_TOKEN: AtomicUsize = AtomicUsize::new(1);

struct Turmoil {
    db: Database,
    proxy: Proxy,
    until: Instant,
    /// Answers checked.
    checked: AtomicUsize,
}

/// Errors that the turmoil itself may cause.
const EXPECTED: [&str; 4] = ["57014", "53300", "57P01", "08006"];

/// Reads one answer: every row and notice must carry the token.
async fn check(client: &mut RawClient, token: &str, slowly: bool) -> io::Result<()> {
    let mut frames = 0;
    loop {
        let Some(frame) = client.next_frame().await? else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        check_frame(&frame, token);
        if frame.tag == b'Z' {
            return Ok(());
        }
        frames += 1;
        if slowly && frames % 100 == 0 {
            sleep(Duration::from_millis(2)).await;
        }
    }
}

fn check_frame(frame: &Frame, token: &str) {
    match frame.tag {
        b'D' => assert_eq!(frame.values()[0].as_deref(), Some(token), "not its own row"),
        b'N' => {
            let words = frame.field(b'M').unwrap();
            // A BEGIN that was refused or cancelled is followed by its COMMIT.
            let own = words == token || words == "there is no transaction in progress";
            assert!(own, "not its own notice, {token}: {frame:?}");
        }
        b'A' => panic!("nobody listens: {frame:?}"),
        b'E' => {
            let code = frame.sqlstate();
            assert!(EXPECTED.contains(&code.as_str()), "{frame:?}");
        }
        b'd' => {
            let line = frame.body.strip_suffix(b"\n").unwrap_or_default();
            assert_eq!(line, token.as_bytes(), "not its own COPY data");
        }
        _ => {}
    }
}

/// One request of some kind; the number of ReadyForQuery it brings.
fn request(kind: usize, token: &str) -> (Vec<u8>, usize) {
    let quoted = format!("'{token}'");
    match kind {
        0 => (query(&format!("SELECT {quoted}")), 1),
        1 => (
            query(&format!(
                "SELECT {quoted}, repeat('x', 500) FROM generate_series(1, 3000)"
            )),
            1,
        ),
        2 => (
            [
                extended("SELECT $1::text FROM generate_series(1, 50)", &[token]),
                sync(),
            ]
            .concat(),
            1,
        ),
        3 => {
            let one = [extended("SELECT $1::text", &[token]), sync()].concat();
            (one.repeat(20), 20)
        }
        4 => (
            query(&format!(
                "COPY (SELECT {quoted} FROM generate_series(1, 500)) TO STDOUT"
            )),
            1,
        ),
        5 => (
            query(&format!("DO $$ BEGIN RAISE NOTICE {quoted}; END $$")),
            1,
        ),
        6 => {
            let begin = [
                query("BEGIN"),
                query(&format!("SELECT {quoted}, pg_sleep(0.005)")),
            ];
            ([begin.concat(), query("COMMIT")].concat(), 3)
        }
        7 => {
            let whole = format!("SELECT {quoted} FROM generate_series(1, 9)");
            let portions = [execute("", 4), flush(), execute("", 0), sync()].concat();
            (
                [parse("", &whole), flush(), bind("", "", &[]), portions].concat(),
                1,
            )
        }
        8 => (query(&format!("SELECT {quoted} FROM pg_sleep(0.6)")), 1),
        _ => (
            query(&format!("SELECT {quoted} WHERE 1/(random() + 1)::int = 1")),
            1,
        ),
    }
}

async fn one_client(turmoil: Arc<Turmoil>) {
    while Instant::now() < turmoil.until {
        let mut client = turmoil.proxy.raw(&turmoil.db).await;
        // Whoever is broken off comes again.
        let _ = one_session(&mut client, &turmoil).await;
        if rand::random_bool(0.5) {
            client.reset();
        }
    }
}

async fn one_session(client: &mut RawClient, turmoil: &Turmoil) -> io::Result<()> {
    for _ in 0..rand::random_range(1..30) {
        let token = format!("token {}", NEXT_TOKEN.fetch_add(1, Ordering::Relaxed));
        let kind = rand::random_range(0..10);
        let (bytes, answers) = request(kind, &token);
        if rand::random_bool(0.05) {
            // Leaves in the middle of a message, or of its answer.
            let part = rand::random_range(1..=bytes.len());
            return client.try_send(&bytes[..part]).await;
        }
        client.try_send(&bytes).await?;
        let cancels = rand::random_bool(0.1);
        if cancels {
            client.cancel().await;
        }
        let slowly = rand::random_bool(0.2);
        for answer in 0..answers {
            let checked = timeout(ANSWERED_WITHIN, check(client, &token, slowly)).await;
            let what =
                || format!("answer {answer} to {kind}, cancelled: {cancels}, slow: {slowly}");
            checked.unwrap_or_else(|_| panic!("{} never came", what()))?;
        }
        turmoil.checked.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn kill_one(observer: &Observer, db: &Database) {
    let sql = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = '{}' ORDER BY random() LIMIT 1",
        db.name
    );
    observer.client.batch_execute(&sql).await.unwrap();
}

async fn turmoil(builder: crate::support::ProxyBuilder) -> usize {
    let db = database().await;
    let proxy = builder
        .max_connections(3)
        .set("log.level", "warn")
        .start()
        .await;
    // The first login asks the server; those after it need no backend that might be killed meanwhile.
    proxy.raw(&db).await;
    let observer = observer().await;
    let turmoil = Arc::new(Turmoil {
        db,
        proxy,
        until: Instant::now() + TURMOIL_FOR,
        checked: AtomicUsize::new(0),
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| tokio::spawn(one_client(turmoil.clone())))
        .collect();
    while Instant::now() < turmoil.until {
        sleep(Duration::from_millis(150)).await;
        kill_one(&observer, &turmoil.db).await;
    }
    for client in clients {
        client.await.unwrap();
    }
    turmoil.checked.load(Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_any_turmoil_every_client_gets_its_own_rows_and_nobody_elses() {
    let builder = proxy()
        .set("pool.query_timeout", "500ms")
        .set("pool.connection_borrow_timeout", 2);
    let checked = turmoil(builder).await;
    assert!(checked > 300, "only {checked} answers checked");
}
