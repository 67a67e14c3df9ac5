//! What sharing and replaying must not do to others.

use super::{database, proxy};
use crate::support::RawClient;
use crate::support::frames::{
    self, bind, column, describe_statement, errors, execute, flush, parse, query, sync,
};

async fn run(client: &mut RawClient, name: &str) -> Vec<frames::Frame> {
    let run = [bind("", name, &[]), execute("", 0), sync()].concat();
    client.ask(&run).await
}

async fn prepare(client: &mut RawClient, name: &str, sql: &str) {
    let answer = client.ask(&[parse(name, sql), sync()].concat()).await;
    assert_eq!(answer[0].tag, b'1', "{answer:?}");
}

#[tokio::test]
async fn a_text_means_what_its_own_client_s_settings_make_of_it() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let sql = "SELECT extract(epoch FROM '2020-01-01 00:00'::timestamptz)::bigint";
    for (zone, expected) in [
        ("UTC", "1577836800"),
        ("America/New_York", "1577854800"),
        ("UTC", "1577836800"),
    ] {
        let mut client = proxy.raw_with(&db, &[("TimeZone", zone)]).await;
        prepare(&mut client, "s", sql).await;
        assert_eq!(column(&run(&mut client, "s").await), [expected], "{zone}");
        let mut other = proxy.raw(&db).await;
        other
            .query(&format!("BEGIN; SET TimeZone = '{zone}'"))
            .await;
        prepare(&mut other, "s", sql).await;
        assert_eq!(column(&run(&mut other, "s").await), [expected], "{zone}");
        other.query("ROLLBACK").await;
    }
}

#[tokio::test]
async fn a_name_without_end_ends_its_session() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let mut client = proxy.raw(&db).await;
    let endless = [&b"\0"[..], &[b'x'; 150_000]].concat();
    let mut message = frames::message(b'B', &endless);
    message[1..5].copy_from_slice(&300_000_u32.to_be_bytes());
    client.send(&message).await;
    let refused = client.next_frame().await.unwrap().unwrap();
    assert_eq!(refused.sqlstate(), "08P01");
    assert_eq!(proxy.raw(&db).await.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn discard_all_leaves_what_the_login_asked_for_in_every_mode() {
    for mode in ["transaction", "session"] {
        let db = database().await;
        let proxy = proxy().max_connections(2).mode(mode).start().await;
        let startup = [("TimeZone", "Asia/Tokyo"), ("application_name", "me")];
        let mut client = proxy.raw_with(&db, &startup).await;
        client.query("SET TimeZone = 'UTC'").await;
        client.query("DISCARD ALL").await;
        assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo", "{mode}");
        client.query("SET TimeZone = 'UTC'").await;
        client.query("RESET TimeZone").await;
        assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo", "{mode}");
        // By the extended protocol, answered before it is synced.
        let discard = [
            parse("", "DISCARD ALL"),
            bind("", "", &[]),
            execute("", 0),
            flush(),
        ]
        .concat();
        client.send(&discard).await;
        for expected in [b'1', b'2', b'C'] {
            let mut frame = client.next_frame().await.unwrap().unwrap();
            while frame.tag == b'S' {
                frame = client.next_frame().await.unwrap().unwrap();
            }
            assert_eq!(frame.tag, expected);
        }
        client.ask(&sync()).await;
        assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo", "{mode}");
    }
}

#[tokio::test]
async fn what_set_transaction_sets_is_nobodys_setting() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let (mut client, mut other) = (proxy.raw(&db).await, proxy.raw(&db).await);
    client
        .query("BEGIN; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE")
        .await;
    client.query("COMMIT").await;
    for client in [&mut client, &mut other] {
        client.query("SET work_mem = '5MB'").await;
    }
    for client in [&mut client, &mut other] {
        assert_eq!(client.value("SHOW work_mem").await, "5MB");
        assert_eq!(client.value("SHOW transaction_read_only").await, "off");
    }
}

#[tokio::test]
async fn what_only_a_superuser_sets_comes_before_the_role_and_goes_after_it() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let options = [
        ("options", "-c log_statement=all -c role=pg_monitor"),
        ("options", "-c role=pg_monitor"),
        ("options", "-c log_statement=ddl"),
    ];
    let mut clients = Vec::new();
    for option in options {
        clients.push(proxy.raw_with(&db, &[option]).await);
    }
    for _ in 0..3 {
        for (client, user) in clients
            .iter_mut()
            .zip(["pg_monitor", "pg_monitor", "postgres"])
        {
            assert_eq!(client.value("SELECT current_user").await, user);
        }
    }
}

#[tokio::test]
async fn reset_does_not_take_init_query_from_anybody() {
    let db = database().await;
    let proxy = proxy()
        .max_connections(1)
        .set("pool.init_query", "SET work_mem = '16MB'")
        .start()
        .await;
    let (mut client, mut other) = (proxy.raw(&db).await, proxy.raw(&db).await);
    for sql in ["RESET ALL", "RESET work_mem", "DISCARD ALL"] {
        client.query("SET work_mem = '5MB'").await;
        client.query(sql).await;
        assert_eq!(other.value("SHOW work_mem").await, "16MB", "{sql}");
        assert_eq!(client.value("SHOW work_mem").await, "16MB", "{sql}");
    }
}

#[tokio::test]
async fn names_prepared_behind_a_discard_are_there() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let mut other = proxy.raw(&db).await;
    prepare(&mut other, "o", "SELECT 'old'").await;
    let mut client = proxy.raw(&db).await;
    prepare(&mut client, "s", "SELECT 'before'").await;
    let both = [
        query("DISCARD ALL"),
        parse("s", "SELECT 'old'"),
        describe_statement("s"),
        sync(),
    ]
    .concat();
    client.send(&both).await;
    for _ in 0..2 {
        let answer = client.ready().await;
        assert_eq!(errors(&answer), [""; 0], "{answer:?}");
    }
    assert_eq!(column(&run(&mut client, "s").await), ["old"]);
    assert_eq!(column(&run(&mut other, "o").await), ["old"]);
}

#[tokio::test]
async fn a_batch_that_fails_leaves_every_backend_true() {
    let db = database().await;
    let proxy = proxy()
        .max_connections(1)
        .set("pool.max_prepared_statements", 2)
        .start()
        .await;
    let (mut client, mut other) = (proxy.raw(&db).await, proxy.raw(&db).await);
    for (name, sql) in [("x", "SELECT 'x'"), ("y", "SELECT 'y'")] {
        prepare(&mut other, name, sql).await;
    }
    // The first batch fails at once; what it was to prepare, close and evict stays as it was.
    let pipeline = [
        bind("", "nobody", &[]),
        parse("z", "SELECT 'z'"),
        sync(),
        parse("m", "SELECT 'x'"),
        bind("", "m", &[]),
        execute("", 0),
        sync(),
        parse("z", "SELECT 'z'"),
        sync(),
    ]
    .concat();
    client.send(&pipeline).await;
    assert_eq!(code_of_frames(&client.ready().await), "26000");
    assert_eq!(column(&client.ready().await), ["x"]);
    assert_eq!(client.ready().await[0].tag, b'1');
    assert_eq!(column(&run(&mut client, "m").await), ["x"]);
    for name in ["y", "x"] {
        assert_eq!(column(&run(&mut other, name).await), [name]);
    }
}

fn code_of_frames(frames: &[frames::Frame]) -> String {
    let error = frames.iter().find(|frame| frame.tag == b'E').unwrap();
    error.sqlstate()
}

#[tokio::test]
async fn a_refused_replay_stops_the_request_behind_it_whatever_it_begins_with() {
    let db = database().await;
    db.execute("CREATE TABLE who (name text)").await;
    db.execute("DROP ROLE IF EXISTS mayfly; CREATE ROLE mayfly SUPERUSER")
        .await;
    let proxy = proxy().max_connections(1).start().await;
    for sql in [
        "INSERT INTO who VALUES (current_user)",
        "ROLLBACK; INSERT INTO who VALUES (current_user)",
        "/* x */ COMMIT; INSERT INTO who VALUES (current_user)",
    ] {
        let mut client = proxy.raw(&db).await;
        client.query("SET ROLE mayfly").await;
        proxy.raw(&db).await.query("SELECT 1").await;
        db.execute("DROP ROLE mayfly").await;
        client.send(&query(sql)).await;
        let refused = client.next_frame().await.unwrap().unwrap();
        assert_eq!(refused.tag, b'E', "{sql}: {refused:?}");
        db.execute("CREATE ROLE mayfly SUPERUSER").await;
        let count = proxy.raw(&db).await.value("SELECT count(*) FROM who").await;
        assert_eq!(count, "0", "{sql}");
    }
    db.execute("DROP ROLE mayfly").await;
}

#[tokio::test]
async fn what_a_function_left_unseen_ends_with_its_backend() {
    let db = database().await;
    db.execute(
        "CREATE FUNCTION hide() RETURNS int LANGUAGE plpgsql AS \
         'BEGIN CREATE TEMP TABLE hidden (x int); RETURN 1; END'",
    )
    .await;
    let proxy = proxy().max_connections(1).start().await;
    let (mut client, mut other) = (proxy.raw(&db).await, proxy.raw(&db).await);
    client.query("SELECT hide()").await;
    // Found when somebody's settings are asked for; that one loses nothing.
    other.query("SET work_mem = '5MB'").await;
    assert_eq!(other.value("SHOW work_mem").await, "5MB");
    let gone = other.query("SELECT * FROM hidden").await;
    assert_eq!(code_of_frames(&gone), "42P01");
}

#[tokio::test]
async fn a_request_held_for_a_replay_gets_the_backend_it_was_held_for() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let (mut one, mut two) = (proxy.raw(&db).await, proxy.raw(&db).await);
    one.query("SET work_mem = '3MB'").await;
    two.query("SET work_mem = '5MB'").await;
    // Each has its settings replayed for a request that waits for that; the other wants the backend, too.
    for end in ["ROLLBACK", "COMMIT", "END", "-- nothing\nABORT"] {
        for _ in 0..20 {
            one.send(&query(end)).await;
            two.send(&query(end)).await;
            one.ready().await;
            two.ready().await;
        }
    }
    assert_eq!(one.value("SHOW work_mem").await, "3MB");
    assert_eq!(two.value("SHOW work_mem").await, "5MB");
}

#[tokio::test]
async fn an_unnamed_statement_behind_one_that_fails_is_there() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let mut client = proxy.raw(&db).await;
    let pipeline = [
        parse("", "SELECT nothing FROM nowhere"),
        sync(),
        parse("", "SELECT 'second'"),
        sync(),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ]
    .concat();
    client.send(&pipeline).await;
    assert_eq!(code_of_frames(&client.ready().await), "42P01");
    assert_eq!(client.ready().await[0].tag, b'1');
    assert_eq!(column(&client.ready().await), ["second"]);
}

#[tokio::test]
async fn a_statement_that_can_not_be_prepared_any_more_can_be_deallocated() {
    let db = database().await;
    db.execute("CREATE TABLE here (x int)").await;
    let proxy = proxy().max_connections(2).start().await;
    let (mut client, mut other) = (proxy.raw(&db).await, proxy.raw(&db).await);
    prepare(&mut client, "s", "SELECT * FROM here").await;
    // On the other backend, where it never was.
    other.query("BEGIN").await;
    client.query("SET search_path = nowhere").await;
    let answer = client.query("DEALLOCATE s").await;
    assert_eq!(errors(&answer), [""; 0], "{answer:?}");
    assert_eq!(code_of_frames(&run(&mut client, "s").await), "26000");
}

#[tokio::test]
async fn reset_under_another_role_goes_back_to_the_logins_values() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let startup = [("application_name", "somebody"), ("TimeZone", "Asia/Tokyo")];
    let mut client = proxy.raw_with(&db, &startup).await;
    client.query("SET ROLE pg_monitor").await;
    client.query("RESET ALL").await;
    assert_eq!(client.value("SHOW application_name").await, "somebody");
    assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo");
    assert_eq!(client.value("SELECT current_user").await, "pg_monitor");
}
