//! Who pins, why, with which statement, and what to change: in the log, and at `/pins`.

use crate::support::frames::{bind, execute, extended, function_call, parse, query, sync};
use crate::support::{Database, Proxy, RawClient, database, eventually, proxy};
use serde_json::Value;

/// A word in every literal; nothing that is told may hold it.
const MARKER: &str = "xylophone";

/// How a reason comes about and ends, and the statement it is told with.
struct Case {
    reason: &'static str,
    begin: Vec<u8>,
    answers: usize,
    end: &'static str,
    statement: &'static str,
}

fn case(reason: &'static str, begin: Vec<u8>, end: &'static str, statement: &'static str) -> Case {
    Case {
        reason,
        begin,
        answers: 1,
        end,
        statement,
    }
}

fn simple(reason: &'static str, sql: &str, end: &'static str, statement: &'static str) -> Case {
    case(reason, query(sql), end, statement)
}

fn long_parse(name: &str, length: usize) -> Vec<u8> {
    let sql = format!("SELECT 'xylophone', a FROM b -- {}", "x".repeat(length));
    [parse(name, &sql.replace("a FROM b", "1")), sync()].concat()
}

fn cases() -> Vec<Case> {
    let lock = extended("SELECT pg_advisory_lock($1::int), 'xylophone'", &["4711"]);
    let mut cases = vec![
        simple(
            "sql_prepare",
            "PREPARE s AS SELECT 'xylophone', 4711; PREPARE t AS SELECT 1",
            "DEALLOCATE ALL",
            "prepare s as select ?; prepare t as select ?",
        ),
        simple(
            "temp_object",
            "CREATE TEMP TABLE x AS SELECT $$xylophone$$ AS v",
            "DROP TABLE x",
            "create temp table x as select ? as v",
        ),
        simple(
            "hold_cursor",
            "DECLARE c CURSOR WITH HOLD FOR SELECT E'xylophone\\''",
            "CLOSE c",
            "declare c cursor with hold for select ?",
        ),
        simple(
            "listen",
            "SET app.token = xylophone; LISTEN news",
            "UNLISTEN news",
            "set app.token = ?; listen news",
        ),
        simple(
            "settings",
            "CALL p('xylophone')",
            "DISCARD ALL",
            "call p(?)",
        ),
        case(
            "advisory_lock",
            [lock, sync()].concat(),
            "SELECT pg_advisory_unlock_all()",
            "select pg_advisory_lock($1::int), ?",
        ),
        case(
            "named_statement",
            long_parse("long", 40_000),
            "DISCARD ALL",
            "select ?…",
        ),
        case(
            "unnamed_statement",
            long_parse("", 20_000),
            "SELECT 1",
            "select ?",
        ),
        case(
            "function_call",
            function_call(1317, &["xylophone"]),
            "DISCARD ALL",
            "FunctionCall of function 1317",
        ),
        simple(
            "sequence",
            "SELECT lastval() /* fails */",
            "DISCARD SEQUENCES",
            "select nextval(?), ?",
        ),
    ];
    let sequence = cases.last_mut().unwrap();
    sequence
        .begin
        .extend(query("SELECT nextval('q'), 'xylophone'"));
    sequence.answers = 2;
    cases
}

async fn started() -> (Database, Proxy) {
    let db = database().await;
    db.execute("CREATE SEQUENCE q; CREATE PROCEDURE p(t text) LANGUAGE sql AS $$ SELECT set_config('a.' || t, 'x', false) $$")
        .await;
    let proxy = proxy()
        .set("log.format", "json")
        // The only backend never listens for others.
        .max_connections(1)
        .start()
        .await;
    (db, proxy)
}

/// Log lines with this message.
fn lines(proxy: &Proxy, message: &str) -> Vec<Value> {
    let log = proxy.log();
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
    lines
        .filter(|line: &Value| line["message"] == message)
        .collect()
}

async fn told(proxy: &Proxy, message: &str, count: usize) -> Value {
    eventually(message, async || lines(proxy, message).len() == count).await;
    lines(proxy, message).pop().unwrap()
}

async fn pins(proxy: &Proxy) -> Vec<Value> {
    let (status, page) = proxy.http("/pins?format=json").await;
    assert_eq!(status, 200);
    assert!(!page.contains(MARKER), "{page}");
    let page: Value = serde_json::from_str(&page).unwrap();
    page["pins"].as_array().unwrap().clone()
}

/// The only one for that reason.
async fn pin(proxy: &Proxy, reason: &str) -> Value {
    let mut pins = pins(proxy).await;
    pins.retain(|pin| pin["reason"] == reason);
    assert_eq!(pins.len(), 1, "{pins:?}");
    pins.remove(0)
}

#[tokio::test]
async fn each_reason_is_told_with_its_statement_when_it_begins_and_when_it_ends() {
    for case in cases() {
        let (db, proxy) = started().await;
        let mut client = proxy.raw(&db).await;
        client.send(&case.begin).await;
        for _ in 0..case.answers {
            client.ready().await;
        }
        let line = told(&proxy, "session pinned", 1).await;
        assert_eq!(line["reason"], case.reason);
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["statement"], case.statement, "{}", case.reason);
        assert_eq!(line["database"], db.name.as_str());
        assert_eq!(line["client"], "c1");
        let digest = line["digest"].as_str().unwrap();
        assert_eq!(digest.len(), 16, "{}", case.reason);
        let pinned = pin(&proxy, case.reason).await;
        assert_eq!(pinned["digest"], digest);
        assert_eq!(pinned["statement"], case.statement);
        assert_eq!(pinned["database"], db.name.as_str());
        assert_eq!(
            (&pinned["pinned_now"], &pinned["pins"]),
            (&1.into(), &1.into())
        );
        assert_eq!(pinned["advice"], line["advice"]);
        assert!(pinned["advice"].as_str().unwrap().len() > 10);

        client.query(case.end).await;
        let line = told(&proxy, "session unpinned", 1).await;
        assert_eq!(
            (&line["reason"], &line["digest"]),
            (&case.reason.into(), &digest.into())
        );
        assert!(line["seconds"].as_f64().unwrap() > 0.0);
        let ended = pin(&proxy, case.reason).await;
        assert_eq!(
            (&ended["pinned_now"], &ended["pins"]),
            (&0.into(), &1.into())
        );
        assert!(ended["pinned_seconds"].as_f64().unwrap() > 0.0);
        let seconds = proxy.metrics().await;
        let seconds = seconds.sum("pgsluice_pinned_seconds_total", &[("reason", case.reason)]);
        assert!(seconds > 0.0, "{}", case.reason);
        assert!(!proxy.log().contains(MARKER), "{}", case.reason);
    }
}

#[tokio::test]
async fn the_backend_that_is_kept_is_named() {
    let (db, proxy) = started().await;
    let mut client = proxy.raw(&db).await;
    client.query("LISTEN news").await;
    let line = told(&proxy, "session pinned", 1).await;
    let pid = client.value("SELECT pg_backend_pid()").await;
    assert_eq!(line["pid"].to_string(), pid);
}

#[tokio::test]
async fn a_loaded_library_is_told_until_its_client_leaves() {
    let (db, proxy) = started().await;
    let mut client = proxy.raw(&db).await;
    client.query("LOAD 'auto_explain'").await;
    let line = told(&proxy, "session pinned", 1).await;
    assert_eq!(
        (&line["reason"], &line["statement"]),
        (&"load".into(), &"load ?".into())
    );
    assert_eq!(lines(&proxy, "session unpinned").len(), 0);
    drop(client);
    assert_eq!(told(&proxy, "session unpinned", 1).await["reason"], "load");
}

#[tokio::test]
async fn the_same_statement_with_other_values_is_one_line_of_the_page_and_no_more_news() {
    let (db, proxy) = started().await;
    for number in 0..3 {
        let mut client = proxy.raw(&db).await;
        client
            .query(&format!("SELECT  pg_advisory_lock({number})"))
            .await;
        let line = told(&proxy, "session pinned", number + 1).await;
        let level = if number == 0 { "INFO" } else { "DEBUG" };
        assert_eq!(line["level"], level);
        client.query("DISCARD ALL").await;
        assert_eq!(
            told(&proxy, "session unpinned", number + 1).await["level"],
            level
        );
    }
    let pin = pin(&proxy, "advisory_lock").await;
    assert_eq!((&pin["pins"], &pin["pinned_now"]), (&3.into(), &0.into()));
    assert_eq!(pin["statement"], "select pg_advisory_lock(?)");
}

#[tokio::test]
async fn people_read_the_page_as_text() {
    let (db, proxy) = started().await;
    assert_eq!(
        proxy.http("/pins").await,
        (200, "no session has been pinned\n".into())
    );
    let mut client = proxy.raw(&db).await;
    client
        .query("CREATE TEMP TABLE x AS SELECT 'xylophone'")
        .await;
    told(&proxy, "session pinned", 1).await;
    let (status, page) = proxy.http("/pins").await;
    assert_eq!(status, 200);
    for part in [
        "  temp_object  ",
        "\n  create temp table x as select ?\n",
        "pinned now: 1, times: 1,",
        "to avoid it: ",
    ] {
        assert!(page.contains(part), "{part:?} is not in {page}");
    }
    drop(client);
}

/// A statement prepared in one lease and executed in another: under a name, and without.
#[tokio::test]
async fn a_statement_prepared_before_is_named_when_it_pins() {
    for name in ["named", ""] {
        let (db, proxy) = started().await;
        let (mut client, mut other) = (proxy.raw(&db).await, proxy.raw(&db).await);
        let sql = "SELECT pg_advisory_lock($1::int), 'xylophone'";
        client.ask(&[parse(name, sql), sync()].concat()).await;
        other.query("SELECT 1").await;
        assert_eq!(lines(&proxy, "session pinned").len(), 0);
        let use_it = [bind("", name, &["7"]), execute("", 0), sync()].concat();
        client.ask(&use_it).await;
        let line = told(&proxy, "session pinned", 1).await;
        assert_eq!(
            line["statement"], "select pg_advisory_lock($1::int), ?",
            "{name:?}"
        );
    }
}

#[tokio::test]
async fn what_came_to_nothing_is_not_blamed() {
    let (db, proxy) = started().await;
    let mut client: RawClient = proxy.raw(&db).await;
    client.query("LISTEN news").await;
    for sql in ["BEGIN", "CREATE TEMP TABLE a (x int)", "ROLLBACK"] {
        client.query(sql).await;
    }
    told(&proxy, "session pinned", 1).await;
    client.query("CREATE TEMP TABLE b (x int)").await;
    client.query("CREATE TEMP TABLE c (x int)").await;
    let line = told(&proxy, "session pinned", 2).await;
    assert_eq!(line["statement"], "create temp table b (x int)");
    assert_eq!(pins(&proxy).await.len(), 2);
}

/// A function changes the role, under which not all that is set is shown. No text says so, an earlier SET least of all.
#[tokio::test]
async fn what_no_text_shows_is_blamed_on_none() {
    let (db, proxy) = started().await;
    let role = db.role("limited", "x").await;
    db.execute(&format!(
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS \
         $$ SELECT set_config('role', '{role}', false) $$"
    ))
    .await;
    let mut client = proxy.raw(&db).await;
    client.query("LISTEN news").await;
    client.query("SET dynamic_library_path = '/nowhere'").await;
    client.query("SELECT f()").await;
    eventually("it is pinned", async || pins(&proxy).await.len() == 2).await;
    let pin = pin(&proxy, "settings").await;
    assert_eq!(
        (&pin["digest"], &pin["statement"]),
        (&Value::Null, &Value::Null)
    );
}

#[tokio::test]
async fn in_an_open_transaction_nothing_is_pinned_yet() {
    let (db, proxy) = started().await;
    let mut client = proxy.raw(&db).await;
    client.query("BEGIN").await;
    client.query("CREATE TEMP TABLE a (x int)").await;
    // The proxy is at rest: it has gone on to count the transaction.
    let open = "pgsluice_database_connections_in_transaction";
    eventually("it is at rest", async || {
        proxy.metrics().await.sum(open, &[]) == 1.0
    })
    .await;
    client.query("SELECT 1").await;
    assert_eq!(proxy.metrics().await.sum("pgsluice_pins_total", &[]), 0.0);
    client.query("ROLLBACK").await;
    client.query("SELECT 1").await;
    assert_eq!(pins(&proxy).await, [Value::Null; 0]);
    assert_eq!(lines(&proxy, "session pinned").len(), 0);
}

#[tokio::test]
async fn what_the_pools_mode_keeps_is_on_the_page_and_not_in_the_log() {
    let db = database().await;
    let proxy = proxy()
        .set("log.format", "json")
        .mode("session")
        .start()
        .await;
    let mut client = proxy.raw(&db).await;
    client.query("SELECT 1").await;
    eventually("it is on the page", async || pins(&proxy).await.len() == 1).await;
    let pin = pin(&proxy, "session_mode").await;
    assert_eq!(
        (&pin["digest"], &pin["statement"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(lines(&proxy, "session pinned").len(), 0);
}
