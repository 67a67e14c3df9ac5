//! LISTEN without a backend of one's own: one listener per database hears for all sessions that listen there.
//!
//! ```text
//!             B's survey: the session listens         marker
//!   on B ────────────────────────────► joins the hub ─────────► through the listener, without a backend
//!    ▲        no listener yet: B becomes it, nothing moves              │
//!    └──────────────── marker, before a request that may change it ◄────┘
//! ```
//! What a session listens to is the server's to say: LISTEN and UNLISTEN run on a backend of the session's, in its
//! transaction, and the survey asks when that has ended. Moving from one connection to another loses nothing and doubles
//! nothing: PostgreSQL has one queue of notifications, and every listener of a database reads it in the same order, that of
//! the commits (src/backend/commands/async.c). So a NOTIFY of ours, the *marker*, stands at the same place for both: what
//! comes before it is the old connection's to deliver, what comes after it the new one's.
//!
//! Payloads come in the connection's client_encoding. Only sessions whose client_encoding is the server's share a listener:
//! nothing is converted then.
//!
//! - [`hub`]: who wants what, who is served; pure but for a lock
//! - [`inbox`]: what waits for one session, bounded
//! - [`registry`]: the listeners of a target; who founds one
//! - [`task`]: the connection that listens
//! - [`sql`]: what is said to servers, and read from them

mod hub;
mod inbox;
mod registry;
mod sql;
mod task;

pub use hub::Membership;
pub use inbox::Fault;
pub use registry::{Founding, Joined, Listeners};
pub use sql::{Channel, MARKER_CHANNEL, Marker, Notification, listen, notify, unlisten};
