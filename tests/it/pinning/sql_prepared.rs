//! SQL's PREPARE follows its session: no pin, the right statement, nobody else's.

use super::{PINS, database, proxy};
use crate::support::frames::{
    bind, close_statement, column, describe_statement, errors, execute, flush, parse, query, sync,
    tags,
};
use crate::support::{Database, Proxy, RawClient};

/// A client, and another that keeps changing which of two backends is free.
struct Moves {
    db: Database,
    proxy: Proxy,
    client: RawClient,
    one: RawClient,
    two: RawClient,
}

impl Moves {
    async fn new() -> Self {
        let db = database().await;
        let proxy = proxy().max_connections(2).start().await;
        let client = proxy.raw(&db).await;
        let (mut one, two) = (proxy.raw(&db).await, proxy.raw(&db).await);
        one.query("BEGIN").await;
        let mut moves = Self {
            db,
            proxy,
            client,
            one,
            two,
        };
        moves.elsewhere().await;
        moves
    }

    /// From now on the client gets the other backend.
    async fn elsewhere(&mut self) {
        self.two.query("BEGIN").await;
        self.one.query("COMMIT").await;
        std::mem::swap(&mut self.one, &mut self.two);
    }

    async fn no_pins(&self) {
        let metrics = self.proxy.metrics().await;
        assert_eq!(metrics.sum(PINS, &[]), 0.0);
        assert_eq!(metrics.sum("pgsluice_pins_total", &[]), 0.0);
    }
}

/// The messages by which a text goes to the server in both protocols.
fn both(sql: &str) -> [Vec<u8>; 2] {
    let extended = [parse("", sql), bind("", "", &[]), execute("", 0), sync()].concat();
    [query(sql), extended]
}

#[tokio::test]
async fn it_follows_its_session_in_both_protocols() {
    let mut it = Moves::new().await;
    let prepared = it.client.query("PREPARE s(int) AS SELECT $1 + 1").await;
    assert_eq!(errors(&prepared), [""; 0]);
    for round in 0..4 {
        it.elsewhere().await;
        for message in both("EXECUTE s(41)") {
            assert_eq!(column(&it.client.ask(&message).await), ["42"], "{round}");
        }
        // What was brought is told of to nobody: one answer, one end.
        let answer = it.client.query("EXECUTE s(1)").await;
        assert_eq!(tags(&answer), "TDCZ");
    }
    it.no_pins().await;
    for _ in 0..2 {
        it.elsewhere().await;
        let others = it.proxy.raw(&it.db).await.query("EXECUTE s(1)").await;
        assert_eq!(errors(&others), ["26000"]);
    }
}

#[tokio::test]
async fn each_session_has_its_own_of_a_name() {
    let mut it = Moves::new().await;
    let mut other = it.proxy.raw(&it.db).await;
    it.client.query("PREPARE s AS SELECT 'mine'").await;
    other.query("PREPARE s AS SELECT 'theirs'").await;
    for _ in 0..4 {
        it.elsewhere().await;
        assert_eq!(it.client.value("EXECUTE s").await, "mine");
        assert_eq!(other.value("EXPLAIN (COSTS off) EXECUTE s").await, "Result");
        assert_eq!(other.value("EXECUTE s").await, "theirs");
    }
    it.no_pins().await;
}

#[tokio::test]
async fn what_is_deallocated_or_prepared_anew_is_so_everywhere() {
    let mut it = Moves::new().await;
    it.client.query("PREPARE s AS SELECT 1").await;
    it.elsewhere().await;
    assert_eq!(it.client.value("EXECUTE s").await, "1");
    assert_eq!(
        errors(&it.client.query("PREPARE s AS SELECT 2").await),
        ["42P05"]
    );
    it.client.query("DEALLOCATE s").await;
    it.elsewhere().await;
    assert_eq!(errors(&it.client.query("EXECUTE s").await), ["26000"]);
    it.client.query("PREPARE s AS SELECT 2").await;
    for _ in 0..3 {
        it.elsewhere().await;
        assert_eq!(it.client.value("EXECUTE s").await, "2");
    }
    it.client.query("PREPARE t AS SELECT 3").await;
    it.client.query("BEGIN; DEALLOCATE s; ROLLBACK").await; // it is no transaction's
    it.elsewhere().await;
    assert_eq!(errors(&it.client.query("EXECUTE s").await), ["26000"]);
    assert_eq!(it.client.value("EXECUTE t").await, "3");
    it.client.query("DEALLOCATE ALL").await;
    for _ in 0..2 {
        it.elsewhere().await;
        assert_eq!(errors(&it.client.query("EXECUTE t").await), ["26000"]);
    }
    it.no_pins().await;
}

#[tokio::test]
async fn the_protocol_uses_what_sql_has_prepared() {
    let mut it = Moves::new().await;
    it.client.query("PREPARE s AS SELECT 7").await;
    it.elsewhere().await;
    let run = [bind("", "s", &[]), execute("", 0), sync()].concat();
    assert_eq!(column(&it.client.ask(&run).await), ["7"]);
    let again = it
        .client
        .ask(&[parse("s", "SELECT 8"), sync()].concat())
        .await;
    assert_eq!(errors(&again), ["42P05"]);
    it.elsewhere().await;
    it.client
        .ask(&[close_statement("s"), sync()].concat())
        .await;
    it.elsewhere().await;
    assert_eq!(errors(&it.client.query("EXECUTE s").await), ["26000"]);
}

#[tokio::test]
async fn sql_uses_what_the_protocol_has_prepared() {
    let mut it = Moves::new().await;
    let prepare = [parse("_pg3_0", "SELECT 'seven'"), sync()].concat();
    it.client.ask(&prepare).await;
    for _ in 0..3 {
        it.elsewhere().await;
        for message in both("EXECUTE _pg3_0") {
            assert_eq!(column(&it.client.ask(&message).await), ["seven"]);
        }
        assert_eq!(
            it.client
                .value("EXPLAIN (COSTS off) EXECUTE \"_pg3_0\"")
                .await,
            "Result"
        );
        let refused = it.client.query("PREPARE _pg3_0 AS SELECT 1").await;
        assert_eq!(errors(&refused), ["42P05"]);
        let text = refused.iter().find_map(|frame| frame.field(b'M')).unwrap();
        assert_eq!(text, "prepared statement \"_pg3_0\" already exists");
    }
    it.no_pins().await;
}

#[tokio::test]
async fn a_statement_that_can_not_be_brought_is_one_error() {
    let mut it = Moves::new().await;
    it.client
        .query("CREATE TABLE gone (a int); INSERT INTO gone VALUES (1)")
        .await;
    it.client.query("PREPARE s AS SELECT a FROM gone").await;
    it.client.query("DROP TABLE gone").await;
    it.elsewhere().await;
    let answer = it.client.query("EXECUTE s").await;
    assert_eq!(tags(&answer), "EZ");
    assert_eq!(errors(&answer), ["42P01"]);
    let mut both_at_once = query("EXECUTE s");
    both_at_once.extend(query("SELECT 'behind'"));
    it.client.send(&both_at_once).await;
    assert_eq!(tags(&it.client.ready().await), "EZ");
    assert_eq!(column(&it.client.ready().await), ["behind"]);
    // It is nobody else's error.
    it.client.query("PREPARE t AS SELECT 2").await;
    it.elsewhere().await;
    assert_eq!(it.client.value("EXECUTE t").await, "2");
    let hidden = "SELECT run('execute t')";
    let run = "CREATE FUNCTION run(sql text) RETURNS int LANGUAGE plpgsql AS \
               $$ DECLARE v int; BEGIN EXECUTE sql INTO v; RETURN v; END $$";
    it.client.query(run).await;
    for _ in 0..2 {
        it.elsewhere().await;
        assert_eq!(it.client.value(hidden).await, "2");
    }
    it.elsewhere().await;
    // In a transaction it fails the transaction, as it would anyway.
    it.client.query("BEGIN").await;
    assert_eq!(errors(&it.client.query("EXECUTE s").await), ["42P01"]);
    assert_eq!(errors(&it.client.query("EXECUTE s").await), ["25P02"]);
    it.client.query("ROLLBACK").await;
    it.client
        .query("CREATE TABLE gone (a int); INSERT INTO gone VALUES (2)")
        .await;
    assert_eq!(it.client.value("EXECUTE s").await, "2");
    it.no_pins().await;
}

#[tokio::test]
async fn an_unnamed_execute_is_described_in_a_later_batch() {
    let mut it = Moves::new().await;
    it.client
        .query("PREPARE s AS SELECT 1 AS one, 'x' AS two")
        .await;
    for _ in 0..3 {
        it.client
            .ask(&[parse("", "EXECUTE s"), sync()].concat())
            .await;
        it.elsewhere().await;
        let answer = it
            .client
            .ask(&[describe_statement(""), sync()].concat())
            .await;
        assert_eq!(tags(&answer), "tTZ");
    }
}

#[tokio::test]
async fn what_can_not_be_sent_again_stays_where_it_is() {
    for sql in [
        "PREPARE s AS SELECT 1; PREPARE t AS SELECT 2",
        "BEGIN; SET LOCAL DateStyle = 'German'; PREPARE s AS SELECT '1.2.2020'::date; COMMIT",
    ] {
        let db = database().await;
        let proxy = proxy().max_connections(2).start().await;
        let mut client = proxy.raw(&db).await;
        for part in sql
            .split_inclusive(';')
            .filter(|_| sql.starts_with("BEGIN"))
        {
            client.query(part).await;
        }
        if !sql.starts_with("BEGIN") {
            client.query(sql).await;
        }
        assert_eq!(errors(&client.query("EXECUTE s").await), [""; 0], "{sql}");
        super::is_pinned(&proxy, "sql_prepare").await;
        client.query("DEALLOCATE ALL").await;
        client.query("SELECT 1").await;
        crate::support::eventually(sql, async || proxy.metrics().await.sum(PINS, &[]) == 0.0).await;
    }
}

#[tokio::test]
async fn what_it_sets_when_it_is_executed_follows_too() {
    let mut it = Moves::new().await;
    it.client
        .query("PREPARE s(text) AS SELECT set_config('app.tenant', $1, false)")
        .await;
    it.elsewhere().await;
    it.client.query("EXECUTE s('blue')").await;
    for _ in 0..2 {
        it.elsewhere().await;
        assert_eq!(it.client.value("SHOW app.tenant").await, "blue");
        let mut other = it.proxy.raw(&it.db).await;
        let seen = other
            .value("SELECT coalesce(current_setting('app.tenant', true), '')")
            .await;
        assert_eq!(seen, "");
    }
    it.no_pins().await;
}

#[tokio::test]
async fn the_view_shows_a_session_its_own_and_nobody_elses() {
    let mut it = Moves::new().await;
    let mut other = it.proxy.raw(&it.db).await;
    for (client, name) in [(&mut it.client, "mine"), (&mut other, "theirs")] {
        for n in 0..3 {
            let sql = format!("SELECT '{name} {n}'");
            let prepare = [parse(&format!("{name}_{n}"), &sql), sync()].concat();
            client.ask(&prepare).await;
        }
    }
    it.client.query("PREPARE by_sql AS SELECT 1").await;
    let view = "SELECT name || ':' || statement FROM pg_prepared_statements ORDER BY name";
    let expected = [
        "by_sql:PREPARE by_sql AS SELECT 1",
        "mine_0:SELECT 'mine 0'",
        "mine_1:SELECT 'mine 1'",
        "mine_2:SELECT 'mine 2'",
    ];
    for _ in 0..3 {
        it.elsewhere().await;
        for message in both(view) {
            assert_eq!(column(&it.client.ask(&message).await), expected);
        }
        // All of them can be used, and nobody else's is in the way.
        let run = [bind("", "mine_1", &[]), execute("", 0), sync()].concat();
        assert_eq!(column(&it.client.ask(&run).await), ["mine 1"]);
        let stranger = it.proxy.raw(&it.db).await.query(view).await;
        assert_eq!(column(&stranger), [""; 0]);
        let run = [bind("", "theirs_1", &[]), execute("", 0), sync()].concat();
        assert_eq!(column(&other.ask(&run).await), ["theirs 1"]);
    }
    let prepare = [
        parse("asks", "SELECT count(*) FROM pg_prepared_statements"),
        sync(),
    ]
    .concat();
    it.client.ask(&prepare).await;
    for _ in 0..2 {
        it.elsewhere().await;
        let run = [bind("", "asks", &[]), execute("", 0), sync()].concat();
        assert_eq!(column(&it.client.ask(&run).await), ["5"]);
    }
    it.client.query("DEALLOCATE asks").await;
    // In a batch that fails, what was shown is taken away by whoever comes next.
    let failing = [
        parse("", view),
        bind("", "", &[]),
        execute("", 0),
        parse("", "SELECT 1/0"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ]
    .concat();
    assert_eq!(errors(&it.client.ask(&failing).await), ["22012"]);
    assert_eq!(
        column(
            &other
                .query("SELECT count(*) FROM pg_prepared_statements")
                .await
        ),
        ["3"]
    );
    it.client.query("DEALLOCATE mine_1").await;
    assert_eq!(
        it.client
            .value("SELECT count(*) FROM pg_prepared_statements")
            .await,
        "3"
    );
    it.no_pins().await;
}

#[tokio::test]
async fn a_name_that_can_not_be_brought_ends_its_query() {
    let mut it = Moves::new().await;
    it.client.query("CREATE TABLE gone (a int)").await;
    let prepare = [parse("s", "SELECT * FROM gone"), sync()].concat();
    it.client.ask(&prepare).await;
    it.client.query("DROP TABLE gone").await;
    it.elsewhere().await;
    for _ in 0..3 {
        let answer = it.client.query("EXECUTE s").await;
        assert_eq!(
            (tags(&answer).as_str(), errors(&answer)),
            ("EZ", vec!["42P01".into()])
        );
    }
    assert_eq!(it.client.value("SELECT 1").await, "1");
    // Another shape is an error as often as it is asked for.
    it.client
        .query("CREATE TABLE gone AS SELECT 'x' AS b")
        .await;
    for _ in 0..3 {
        it.elsewhere().await;
        assert_eq!(errors(&it.client.query("EXECUTE s").await), ["0A000"]);
    }
}

#[tokio::test]
async fn a_client_may_use_names_like_the_proxys() {
    let mut it = Moves::new().await;
    let prepare = [parse("pgsluice_0", "SELECT 1"), sync()].concat();
    it.client.ask(&prepare).await;
    let failing = [parse("", "bad syntax"), sync()].concat();
    assert_eq!(errors(&it.client.ask(&failing).await), ["42601"]);
    assert_eq!(it.client.value("EXECUTE pgsluice_0").await, "1");
    it.client
        .send(&[parse("", "bad syntax"), flush()].concat())
        .await;
    it.client.until(b'E').await;
    it.client
        .send(&[query("EXECUTE pgsluice_0"), sync()].concat())
        .await;
    it.client.ready().await;
    assert_eq!(it.client.value("SELECT 2").await, "2");
}

#[tokio::test]
async fn a_deallocate_prepared_by_name_harms_nobody() {
    let mut it = Moves::new().await;
    it.client.query("PREPARE x AS SELECT 1").await;
    let prepare = [parse("d", "DEALLOCATE x"), sync()].concat();
    it.client.ask(&prepare).await;
    let run = [bind("", "d", &[]), execute("", 0), sync()].concat();
    assert_eq!(errors(&it.client.ask(&run).await), [""; 0]);
    assert_eq!(it.proxy.raw(&it.db).await.value("SELECT 1").await, "1");
    it.elsewhere().await;
    assert_eq!(errors(&it.client.query("EXECUTE x").await), ["26000"]);
}
