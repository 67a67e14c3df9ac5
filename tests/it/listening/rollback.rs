//! What a session listens to after transactions, savepoints and failures is what it would be without the proxy.

use super::*;

/// Each begins by listening to a and z, and the session has given its backend back by then.
const SCRIPTS: &[&[&str]] = &[
    &["LISTEN b"],
    &["UNLISTEN a"],
    &["UNLISTEN a", "LISTEN a"],
    &["BEGIN", "LISTEN b", "COMMIT"],
    &["BEGIN", "LISTEN b", "ROLLBACK"],
    &["BEGIN", "UNLISTEN a", "COMMIT"],
    &["BEGIN", "UNLISTEN a", "ROLLBACK"],
    &[
        "BEGIN",
        "UNLISTEN a",
        "UNLISTEN z",
        "LISTEN z",
        "LISTEN b",
        "COMMIT",
    ],
    &[
        "BEGIN",
        "SAVEPOINT s",
        "UNLISTEN a",
        "ROLLBACK TO s",
        "COMMIT",
    ],
    &["BEGIN", "SAVEPOINT s", "UNLISTEN a", "RELEASE s", "COMMIT"],
    &[
        "BEGIN",
        "SAVEPOINT s",
        "UNLISTEN a",
        "ROLLBACK TO s",
        "LISTEN b",
        "COMMIT",
    ],
    &[
        "BEGIN",
        "SAVEPOINT s",
        "UNLISTEN a",
        "ROLLBACK TO s",
        "UNLISTEN a",
        "COMMIT",
    ],
    &[
        "BEGIN",
        "SAVEPOINT s",
        "LISTEN b",
        "ROLLBACK TO s",
        "UNLISTEN a",
        "COMMIT",
    ],
    &[
        "BEGIN",
        "UNLISTEN a",
        "SAVEPOINT s",
        "UNLISTEN z",
        "ROLLBACK TO s",
        "COMMIT",
    ],
    &[
        "BEGIN",
        "UNLISTEN *",
        "SAVEPOINT s",
        "LISTEN b",
        "RELEASE s",
        "LISTEN z",
        "COMMIT",
    ],
    &["BEGIN", "UNLISTEN a", "SELECT 1/0", "UNLISTEN z", "COMMIT"],
    &[
        "BEGIN",
        "SAVEPOINT s",
        "UNLISTEN a",
        "SELECT 1/0",
        "ROLLBACK TO s",
        "LISTEN b",
        "COMMIT",
    ],
    &["BEGIN", "SELECT 1/0", "UNLISTEN a", "ROLLBACK", "LISTEN b"],
    &["DO $$ BEGIN UNLISTEN a; LISTEN b; END $$"],
    &["BEGIN", "DO $$ BEGIN UNLISTEN a; END $$", "ROLLBACK"],
    &["DISCARD ALL", "LISTEN z"],
    &[
        "BEGIN",
        "NOTIFY z, '1'",
        "UNLISTEN a",
        "NOTIFY a, '2'",
        "LISTEN b",
        "NOTIFY b, '3'",
        "COMMIT",
    ],
    &[
        "BEGIN",
        "LISTEN b",
        "NOTIFY b, '1'",
        "NOTIFY a, '2'",
        "COMMIT",
    ],
];

/// The same in one simple query, where that is something else.
const TEXTS: &[&str] = &[
    "UNLISTEN a; LISTEN b",
    "UNLISTEN a; SELECT 1/0",
    "LISTEN b; SELECT 1/0",
    "BEGIN; UNLISTEN a; COMMIT; LISTEN b",
    "BEGIN; UNLISTEN a; ROLLBACK; LISTEN b",
    "BEGIN; LISTEN b; ROLLBACK; SELECT 1",
    "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL; LISTEN z",
];

#[derive(Clone, Copy, Debug)]
enum By {
    Simple,
    Extended,
    /// All statements in one batch without a Sync between them.
    Batch,
    /// Each with its own Sync, all sent at once.
    Pipeline,
}

/// Runs a script; everything it has heard up to the notification of the end.
async fn run(mut client: RawClient, script: &[&str], by: By) -> Vec<(String, String)> {
    client.query("LISTEN a").await;
    client.query("LISTEN z").await;
    let extended = |sql: &&str| extended(sql, &[]);
    let mut all = Vec::new();
    match by {
        By::Simple => {
            for sql in script {
                all.extend(client.query(sql).await);
            }
        }
        By::Extended => {
            for sql in script {
                all.extend(client.ask(&[extended(sql), sync()].concat()).await);
            }
        }
        By::Batch => {
            let batch = script.iter().map(extended).collect::<Vec<_>>().concat();
            all.extend(client.ask(&[batch, sync()].concat()).await);
        }
        By::Pipeline => {
            let each = script.iter().map(|sql| [extended(sql), sync()].concat());
            client.send(&each.collect::<Vec<_>>().concat()).await;
            for _ in script {
                all.extend(client.ready().await);
            }
        }
    }
    let mut heard = heard(&all);
    let status = client.query("SELECT 1").await;
    let idle = status.last().is_some_and(|ready| ready.body[..] == *b"I");
    assert!(idle, "{script:?} by {by:?}: {status:?}");
    heard.extend(super::heard(&status));
    client
        .query("NOTIFY a, 'x'; NOTIFY b, 'x'; NOTIFY z, 'end'")
        .await
        .iter()
        .for_each(|frame| heard.extend(super::heard(std::slice::from_ref(frame))));
    heard
}

async fn same_as_direct(script: &[&str], by: By) {
    let db = database().await;
    println!("{script:?} by {by:?}");
    let expected = run(db.raw().await, script, by).await;
    let db = database().await;
    let proxy = proxy().max_connections(2).start().await;
    let got = run(proxy.raw(&db).await, script, by).await;
    assert_eq!(got, expected, "{script:?} by {by:?}");
    assert_eq!(pins(&proxy).await, 0.0, "{script:?} by {by:?}");
}

#[tokio::test]
async fn in_simple_queries() {
    for script in SCRIPTS {
        same_as_direct(script, By::Simple).await;
    }
    for text in TEXTS {
        same_as_direct(&[text], By::Simple).await;
    }
}

#[tokio::test]
async fn in_the_extended_protocol() {
    for script in SCRIPTS {
        same_as_direct(script, By::Extended).await;
    }
}

#[tokio::test]
async fn in_one_batch() {
    for script in SCRIPTS {
        // An error ends the batch, and leaves the transaction open. What is rolled back within a batch shows too late.
        let apart = ["SELECT 1/0", "DISCARD ALL", "ROLLBACK TO s", "ROLLBACK"];
        if !apart.iter().any(|sql| script.contains(sql)) {
            same_as_direct(script, By::Batch).await;
        }
    }
}

#[tokio::test]
async fn in_a_pipeline() {
    for script in SCRIPTS {
        same_as_direct(script, By::Pipeline).await;
    }
}

/// Where it can't be told what is left the session ends, and says why.
#[tokio::test]
async fn what_cannot_be_told_ends_the_session() {
    for script in [
        &["BEGIN", "ROLLBACK; UNLISTEN a"][..],
        &["BEGIN", "SELECT pg_listening_channels()"],
        &[
            "BEGIN",
            "UNLISTEN a",
            "SAVEPOINT s",
            "ROLLBACK TO s",
            "UNLISTEN z",
            "COMMIT",
        ],
    ] {
        let db = database().await;
        let proxy = proxy().max_connections(2).start().await;
        let mut client = proxy.raw(&db).await;
        client.query("LISTEN a; LISTEN z").await;
        let (last, first) = script.split_last().unwrap();
        for sql in first {
            client.query(sql).await;
        }
        client.send(&query(last)).await;
        let rest = client.rest().await;
        assert_eq!(errors(&rest), ["0A000"], "{script:?}: {rest:?}");
        let metrics = proxy.metrics().await;
        let reason = [("reason", "listening_unknown")];
        let closed = metrics.sum("pgsluice_client_connections_closed_total", &reason);
        assert_eq!(closed, 1.0, "{script:?}");
    }
}
