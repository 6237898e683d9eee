//! Waiting for a condition, with a deadline that says what was not yet true.

use std::time::{Duration, Instant};

use anyhow::Context;

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Asks `condition` until it answers `Ok`, at most for `within`. Its error means "not yet" and says why: the last
/// one is part of the error when time is up. One slow answer may not outlast the deadline either.
pub async fn until<T>(
    what: &str,
    within: Duration,
    mut condition: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + within;
    let mut not_yet = anyhow::anyhow!("nothing was known in that time");
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, condition()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => not_yet = error,
            Err(_) => {}
        }
        if Instant::now() >= deadline {
            return Err(not_yet).with_context(|| format!("wait {within:?} until {what}"));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_that_becomes_true_gives_its_value() {
        let mut calls = 0;
        let value = until("three", Duration::from_secs(10), async || {
            calls += 1;
            anyhow::ensure!(calls == 3, "only {calls}");
            Ok(calls)
        });
        assert_eq!(value.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_condition_that_stays_false_says_why() {
        let error = until("it rains", Duration::from_millis(50), async || -> anyhow::Result<()> {
            anyhow::bail!("the sun shines")
        });
        let text = format!("{:#}", error.await.unwrap_err());
        assert_eq!(text, "wait 50ms until it rains: the sun shines");
    }
}
