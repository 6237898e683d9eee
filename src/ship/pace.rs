//! Holding a downstream to a rate.

use tokio::time::{Duration, Instant, sleep_until};

/// Lets so many bytes pass per second: each send pushes the time of the next one forward. An idle second is not saved
/// up, so a burst after a pause is as slow as any other.
pub(super) struct Pace {
    bytes_per_second: Option<u64>,
    next_at: Instant,
}

impl Pace {
    pub(super) fn new(bytes_per_second: Option<u64>) -> Pace {
        Pace { bytes_per_second: bytes_per_second.filter(|&rate| rate > 0), next_at: Instant::now() }
    }

    /// Waits until something may be sent, and notes that `bytes` will be.
    pub(super) async fn take(&mut self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        sleep_until(self.next_at).await;
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.next_at = Instant::now() + cost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_take_the_time_that_the_rate_gives_them() {
        let began = Instant::now();
        let mut pace = Pace::new(Some(1_000));
        for _ in 0..5 {
            pace.take(500).await;
        }
        assert_eq!(began.elapsed().as_millis(), 2_000);
        Pace::new(None).take(1 << 40).await;
        assert_eq!(began.elapsed().as_millis(), 2_000);
    }
}
