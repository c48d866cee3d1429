use std::sync::Arc;

use tokio::sync::watch;

/// Asks work to stop. Clones share the request; threads poll it, tasks wait for it.
#[derive(Clone, Debug)]
pub struct Cancel {
    sender: Arc<watch::Sender<bool>>,
}

/// The work was asked to stop before it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

impl Cancel {
    pub fn new() -> Self {
        Self { sender: Arc::new(watch::Sender::new(false)) }
    }

    pub fn cancel(&self) {
        self.sender.send_replace(true);
    }

    pub fn is_cancelled(&self) -> bool {
        *self.sender.borrow()
    }

    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }

    /// Returns once cancellation was asked for.
    pub async fn cancelled(&self) {
        // The sender lives as long as `self`, so waiting can only end by the request.
        drop(self.sender.subscribe().wait_for(|cancelled| *cancelled).await);
    }
}

impl Default for Cancel {
    fn default() -> Self {
        Self::new()
    }
}
