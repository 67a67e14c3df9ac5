use super::*;
use crate::pool::DiscardReason;
use crate::pool::testing::{Fixture, error, target, welcome};
use futures_util::FutureExt;

const LONG: Duration = Duration::from_secs(60);

fn willing(_: usize, _: Option<&[u8]>) -> Option<Vec<u8>> {
    welcome()
}

fn two() -> Fixture {
    target("max_connections = 2", willing)
}

fn give_back(mut lease: Lease) {
    let proof = crate::pool::GiveBack::check(lease.conn(), true).unwrap();
    lease.give_back(proof);
}

#[tokio::test(start_paused = true)]
async fn no_patience_is_spent_beyond_the_limit_on_a_silent_server() {
    let fixture = target("max_connections = 2", |_, _| None);
    let pool = fixture.pool("one", None);
    let since = Instant::now();
    let patience = Duration::from_secs(1);
    let result = pool.borrow(patience).await;
    assert!(matches!(result, Err(BorrowError::TimedOut { .. })));
    assert_eq!(since.elapsed(), patience);
}

#[tokio::test]
async fn without_patience_a_connection_of_its_own_is_waited_for() {
    let fixture = two();
    let pool = fixture.pool("one", None);
    let _one = pool.borrow(Duration::ZERO).await.unwrap();
    let _two = pool.borrow(Duration::ZERO).await.unwrap();
    let result = pool.borrow(Duration::ZERO).await;
    assert!(matches!(result, Err(BorrowError::TimedOut { .. })));
}

#[tokio::test]
async fn first_come_first_served() {
    let fixture = target("max_connections = 1", willing);
    let pool = fixture.pool("one", None);
    let lease = pool.borrow(LONG).await.unwrap();
    let (mut one, mut two) = (Box::pin(pool.borrow(LONG)), Box::pin(pool.borrow(LONG)));
    assert!((&mut one).now_or_never().is_none());
    assert!((&mut two).now_or_never().is_none());
    give_back(lease);
    assert!(pool.borrow(Duration::ZERO).await.is_err(), "no overtaking");
    assert!((&mut two).now_or_never().is_none());
    let lease = (&mut one).now_or_never().unwrap().unwrap();
    assert!((&mut two).now_or_never().is_none());
    give_back(lease);
    assert!(two.now_or_never().unwrap().is_ok());
}

#[tokio::test]
async fn another_pools_idle_backend_makes_room() {
    let fixture = two();
    let (one, two) = (fixture.pool("one", None), fixture.pool("two", None));
    give_back(one.borrow(LONG).await.unwrap());
    // Lent, and none is idle beside it: nothing to take.
    let lent = one.borrow(LONG).await.unwrap();
    let other = two.borrow(LONG).await.unwrap();
    give_back(other);
    let second = one.borrow(LONG).await.unwrap();
    assert_eq!((one.idle_count(), two.idle_count()), (0, 0));
    assert_eq!(one.gate.used(), 2);
    drop((lent, second));
}

#[tokio::test]
async fn a_pools_own_cap_holds_and_wakes_who_waits() {
    let fixture = target("max_connections = 9", willing);
    let pool = fixture.pool("one", Some(1));
    let lease = pool.borrow(LONG).await.unwrap();
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.borrow(LONG).await.map(give_back) }
    });
    tokio::task::yield_now().await;
    assert_eq!(pool.gate.used(), 1);
    lease.discard(DiscardReason::ServerFault);
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn more_are_lent_than_the_pool_had_slots_for() {
    let fixture = target("max_connections = 50", willing);
    let pool = fixture.pool("one", None);
    let mut leases = Vec::new();
    for _ in 0..50 {
        leases.push(pool.borrow(LONG).await.unwrap());
    }
    assert!(pool.borrow(Duration::ZERO).await.is_err());
    leases.into_iter().for_each(give_back);
    let status = pool.idle.status();
    assert_eq!(
        (status.size, status.available, pool.idle_count()),
        (50, 50, 50)
    );
    drop(pool.take_idle(20, |_, _| Some(DiscardReason::Idle)));
    assert_eq!((pool.idle.status().size, pool.idle_count()), (30, 30));
}

#[tokio::test(start_paused = true)]
async fn a_full_server_is_asked_again_and_own_backends_are_taken_at_once() {
    // Only the first and the fourth connection are accepted.
    let fixture = target("max_connections = 9", |connection, _| match connection {
        0 | 3 => welcome(),
        _ => error("53300", true),
    });
    let pool = fixture.pool("one", None);
    let lease = pool.borrow(LONG).await.unwrap();
    let mut waiting = Box::pin(pool.borrow(LONG));
    assert!((&mut waiting).now_or_never().is_none());
    while !pool.gate.has_waiters() || fixture.accepted() < 2 {
        tokio::task::yield_now().await;
        assert!((&mut waiting).now_or_never().is_none());
    }
    give_back(lease);
    let lease = waiting.now_or_never().expect("no pause").unwrap();
    let since = Instant::now();
    let _other = pool.borrow(LONG).await.unwrap();
    assert!(since.elapsed() < Duration::from_secs(1), "{since:?}");
    assert_eq!(fixture.accepted(), 4);
    drop(lease);
}

/// Dropped at any of its await points a borrow leaves nothing: no slot, no permit, no place in the queue.
#[tokio::test]
async fn a_borrow_given_up_leaves_nothing() {
    let fixture = two();
    let pool = fixture.pool("one", None);
    for polls in 0..6 {
        for lent in 0..=2 {
            let mut leases = Vec::new();
            for _ in 0..lent {
                leases.push(pool.borrow(LONG).await.unwrap());
            }
            let mut borrowing = Box::pin(pool.borrow(LONG));
            for poll in 0..polls {
                if (&mut borrowing).now_or_never().is_some() {
                    break;
                }
                if poll == 2 {
                    leases.pop().into_iter().for_each(give_back);
                }
                tokio::task::yield_now().await;
            }
            drop(borrowing);
            drop(leases);
            drop(pool.take_idle(usize::MAX, |_, _| Some(DiscardReason::Idle)));
            while pool.gate.used() > 0 {
                tokio::task::yield_now().await;
            }
            assert!(!pool.gate.has_waiters());
            let status = pool.idle.status();
            assert_eq!((status.size, status.waiting, pool.idle_count()), (0, 0, 0));
        }
    }
}
