//! Integration tests: the real proxy before a real PostgreSQL, one module a behaviour. `support` says how.

// The lints' own exception covers functions marked as tests; here everything is one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

mod cancel;
mod config_cli;
mod limits;
mod listening;
mod login;
mod observability;
mod pinning;
mod pool_bounds;
mod relay;
mod stopping;
mod strangers;
mod tls;
mod transactions;
mod two_worlds;
mod wounds;
