//! What the reply that comes now answers.

use super::{Expect, PendingReplies, ReplyAction};

impl PendingReplies {
    /// What comes now answers the survey.
    pub fn is_surveying(&self) -> bool {
        self.entries
            .front()
            .is_some_and(|front| front.expect == Expect::Survey)
    }

    /// What comes now answers an Execute of the proxy's own.
    pub fn is_asking(&self) -> bool {
        self.entries
            .front()
            .is_some_and(|front| front.expect == Expect::Ask)
    }

    /// What comes now answers a Describe of the proxy's own.
    pub fn is_shaping(&self) -> bool {
        self.entries
            .front()
            .is_some_and(|front| front.expect == Expect::Shape)
    }

    /// What comes now answers the client's query that was held.
    pub fn is_ready_held(&self) -> bool {
        self.entries
            .front()
            .is_some_and(|front| front.expect == Expect::HeldQuery)
    }

    /// What comes now answers the proxy's own query behind it.
    pub fn is_restoring(&self) -> bool {
        self.entries
            .front()
            .is_some_and(|front| front.expect == Expect::Restore)
    }

    /// What comes now answers the fence.
    pub fn is_fencing(&self) -> bool {
        self.entries
            .front()
            .is_some_and(|front| front.expect == Expect::Fence)
    }

    /// What comes now is swallowed.
    pub fn is_swallowing(&self) -> bool {
        self.entries
            .front()
            .is_some_and(|front| front.action == ReplyAction::Skip)
    }
}
