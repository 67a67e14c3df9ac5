//! Waiting with an end.

use super::Proxy;
use std::future::Future;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take before the test has failed. Generous: two cores, many tests at once.
pub const PATIENCE: Duration = Duration::from_secs(20);

const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Looks until so many clients wait for a backend.
pub async fn waiting(proxy: &Proxy, count: u32) {
    let what = format!("{count} clients wait for a backend");
    eventually(&what, async || {
        proxy.metrics().await.sum("pgsluice_clients_waiting", &[]) == f64::from(count)
    })
    .await;
}

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
