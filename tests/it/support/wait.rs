//! Waiting with an end.

use std::future::Future;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take before the test has failed. Generous: two cores, many tests at once.
pub const PATIENCE: Duration = Duration::from_secs(20);

const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Looks until the condition holds.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !in_time(what, holds()).await {
        assert!(Instant::now() < deadline, "never came true: {what}");
        sleep(LOOK_AGAIN).await;
    }
}

/// The result, unless it takes too long.
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("took too long: {what}"),
    }
}
