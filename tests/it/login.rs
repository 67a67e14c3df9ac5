//! Who gets in, and what those who do not are told.

mod bad_servers;
mod credentials;
mod greeting;
mod strangers_look_alike;

use crate::support::wire::Wire;
use crate::support::{Database, Frame, Proxy};

/// One login by TCP in the clear.
async fn try_login(
    proxy: &Proxy,
    db: &Database,
    role: &str,
    password: &str,
) -> Result<Vec<Frame>, Frame> {
    let mut wire = Wire::tcp(proxy.address).await;
    wire.log_in(&db.name, role, password).await
}

/// The SQLSTATE and text of a login that must fail.
async fn refusal(proxy: &Proxy, db: &Database, role: &str, password: &str) -> (String, String) {
    match try_login(proxy, db, role, password).await {
        Err(error) => (error.sqlstate(), error.field(b'M').unwrap()),
        Ok(_) => panic!("{role} got in"),
    }
}

/// The kinds of authentication asked for, in order.
fn asked(frames: &[Frame]) -> Vec<u8> {
    let asked = frames.iter().filter(|frame| frame.tag == b'R');
    asked.map(|frame| frame.body[3]).collect()
}
