//! What the tests share: one throwaway PostgreSQL for the whole run, proxies before it, clients of two kinds.
//!
//! ```ignore
//! let db = database().await;                        // a fresh database; server settings: see `server`
//! let proxy = proxy().max_connections(1).start().await;
//! let client = proxy.connect(&db).await;            // tokio-postgres; `sql` has helpers: text(), code_of()
//! let mut raw = proxy.raw(&db).await;               // frames, logged in; `raw`, `frames`
//! let direct = db.connect().await;                  // the same, without the proxy (also `db.raw()`)
//! let observer = observer().await;                  // looks at pg_stat_activity, counts as nobody
//! assert_eq!(observer.backends(&db).await, 1);
//! let metrics = proxy.metrics().await;              // metrics.sum("pgsluice_clients_waiting", &[])
//! eventually("the backend is idle", async || …).await;
//! ```
//! - `proxy()` writes a configuration of free ports on 127.0.0.1, a secrets file, and nothing else. Any key:
//!   `.set("pool.query_timeout", "1s")`; tables of an array: `.rule("user = 'x'\nmode = 'session'")`; more roles:
//!   `.secret("x", "password")`; files beside the configuration: `.file("server.crt", bytes)`; environment: `.env(…)`.
//! - The superuser [`server::ROLE`] logs in to PostgreSQL by trust, and to the proxy too unless `.with_passwords()`.
//!   Roles of a test's own: [`server::Database::role`]; they log in by SCRAM on both sides.
//! - A [`Proxy`] is killed when it is dropped, at the latest when the thread that started it ends; its log is printed if
//!   the test failed. PostgreSQL stops, and its folder goes, when the test process ends, however it ends.
//! - Nothing sleeps to be in time: [`eventually`] looks again until a deadline. Everything that reads has one, too.

// Each module uses what it needs.
#![allow(dead_code, unused_imports)]

pub mod frames;
mod metrics;
mod ports;
mod proxy;
mod raw;
mod server;
mod sql;
mod wait;
pub mod wire;

pub use frames::Frame;
pub use metrics::Metrics;
pub use ports::free_port;
pub use proxy::{Proxy, ProxyBuilder, proxy};
pub use raw::{CancelKey, RawClient, cancel};
pub use server::{Database, Observer, PASSWORD, ROLE, database, observer, server};
pub use sql::{code_of, connect_as, message_of, pid_of, text};
pub use wait::{PATIENCE, eventually, in_time, waiting};
