//! A limit on bytes per second, shared by the connections of one backup.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// How far the limit may be made up for after a pause, so that a chunk never has to wait for its full share of a
/// second behind an idle one.
const BURST: Duration = Duration::from_millis(100);

/// A token bucket: bytes are paid for in time.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: Option<u64>,
    /// When all that was taken so far is paid for.
    paid_until: Mutex<Instant>,
}

impl Pace {
    /// At most this many bytes per second; `None` or zero for no limit.
    pub fn new(bytes_per_second: Option<u64>) -> Pace {
        let bytes_per_second = bytes_per_second.filter(|&limit| limit > 0);
        Pace { bytes_per_second, paid_until: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` more may go. Dropped while it waits, they stay taken.
    pub async fn take(&self, bytes: u64) {
        let Some(limit) = self.bytes_per_second else { return };
        let cost = Duration::from_secs_f64(bytes as f64 / limit as f64);
        let until = {
            let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            *paid_until = (*paid_until).max(earliest) + cost;
            *paid_until
        };
        sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn connections_share_the_limit() {
        let pace = Arc::new(Pace::new(Some(10 << 20)));
        let begin = Instant::now();
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let pace = Arc::clone(&pace);
                tokio::spawn(async move {
                    for _ in 0..25 {
                        pace.take(1 << 20).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let seconds = begin.elapsed().as_secs_f64();
        assert!((9.8..=10.1).contains(&seconds), "100 MiB at 10 MiB/s took {seconds} s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_not_made_up_for() {
        let pace = Pace::new(Some(1 << 20));
        pace.take(1 << 20).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let begin = Instant::now();
        pace.take(2 << 20).await;
        assert!(begin.elapsed() >= Duration::from_millis(1800));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nobody_waits() {
        let begin = Instant::now();
        Pace::new(None).take(u64::MAX).await;
        Pace::new(Some(0)).take(u64::MAX).await;
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }
}
