use super::*;
use crate::pool::testing::{error, row, target, welcome};
use crate::pool::{BorrowError, GiveBack};

const PATIENCE: Duration = Duration::from_secs(60);

/// The first connection gets no answer, the others do.
fn slow_once(connection: usize, query: Option<&[u8]>) -> Option<Vec<u8>> {
    match query {
        None => welcome(),
        Some(_) if connection == 0 => None,
        Some(_) => row("10"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_owes_a_reply_is_not_lent() {
    let fixture = target("", slow_once);
    let pool = fixture.pool("one", None);
    assert!(matches!(
        pool.borrow(PATIENCE).await,
        Err(BorrowError::Limit(LimitError::Query(
            ExchangeError::TimedOut(_)
        )))
    ));
    tokio::spawn(fixture.pools.clone().look_after());
    let mut lease = pool.borrow(PATIENCE).await.unwrap();
    assert!(fixture.accepted() >= 2);
    assert!(GiveBack::check(lease.conn(), true).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_tell_its_limit_is_asked_again() {
    let fixture = target("", |connection, query| match query {
        None => welcome(),
        Some(_) if connection == 0 => error("57014", false),
        Some(_) => row("10"),
    });
    tokio::spawn(fixture.pools.clone().look_after());
    let pool = fixture.pool("one", None);
    let refused = pool.borrow(PATIENCE).await;
    assert!(matches!(refused, Err(BorrowError::Limit(_))));
    let _first = pool.borrow(PATIENCE).await.unwrap();
    let _second = pool.borrow(PATIENCE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_limit_is_asked_for_again_after_a_while() {
    let fixture = target("", |connection, query| match query {
        None => welcome(),
        Some(_) if connection == 0 => row("2"),
        // The second connection is not asked: the answer is fresh.
        Some(_) if connection == 1 => None,
        Some(_) => row("3"),
    });
    tokio::spawn(fixture.pools.clone().look_after());
    let pool = fixture.pool("one", None);
    let _first = pool.borrow(PATIENCE).await.unwrap();
    let second = pool.borrow(PATIENCE).await.unwrap();
    second.discard(DiscardReason::ServerClosed);
    tokio::time::sleep(LEARN_EVERY).await;
    let _third = pool.borrow(PATIENCE).await.unwrap();
    let _fourth = pool.borrow(PATIENCE).await.unwrap();
}
