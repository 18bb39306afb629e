//! How long requests take, for who wants to know.

use std::sync::Arc;
use std::time::Instant;

use linkspan_engine::Histogram;

/// Times requests by one look at the clock for each and one for each pass.
pub(super) struct Clock {
    latency: Arc<Histogram>,
    /// When it was looked at last. A request that is taken then began then, but for what
    /// took those before it in the batch.
    now: Instant,
}

impl Clock {
    pub(super) fn new(latency: &Arc<Histogram>) -> Self {
        Self {
            latency: Arc::clone(latency),
            now: Instant::now(),
        }
    }

    /// A pass begins.
    pub(super) fn look(&mut self) {
        self.now = Instant::now();
    }

    /// When it was looked at last.
    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// A request that was taken then is answered.
    pub(super) fn answered(&mut self, taken: Instant) {
        self.look();
        self.latency
            .record(self.now.saturating_duration_since(taken));
    }
}
