//! Bad input, before a login and after it: an error or a close, nothing more; the proxy lives, stays small, and serves
//! the next client at once.

mod after_login;
mod before_login;
mod crowds;

use crate::support::{Database, Proxy, in_time};
use std::time::{Duration, Instant};

/// How soon the next client must be served, whatever others have done.
const AT_ONCE: Duration = Duration::from_secs(1);

/// The proxy is in order: it serves a new client within a second, and nothing in it has panicked.
async fn is_in_order(proxy: &Proxy, db: &Database, after: &str) {
    let begin = Instant::now();
    let mut client = in_time(after, proxy.raw(db)).await;
    assert_eq!(client.value("select 1").await, "1", "{after}");
    let took = begin.elapsed();
    assert!(took < AT_ONCE, "{after}: the next login took {took:?}");
    assert!(!proxy.log().contains("panicked"), "{after}: a panic");
}

/// Kilobytes of memory the proxy uses.
fn memory_kb(proxy: &Proxy) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
