//! Free ports.

use std::collections::HashSet;
use std::net::TcpListener;
use std::sync::Mutex;

static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port of 127.0.0.1 that nobody listened on a moment ago, and that no other test of this process was given.
/// Somebody else can still be faster: who listens on it must be ready to try another.
pub fn free_port() -> u16 {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut given = GIVEN.lock().unwrap_or_else(|error| error.into_inner());
        if given.get_or_insert_default().insert(port) {
            return port;
        }
    }
}
