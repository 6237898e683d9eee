//! Taking a copy again and again, for as long as only the way to the source is in the way: each attempt goes on with
//! what the ones before it left.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::fault::{Fault, Outcome};
use crate::link::LinkError;
use crate::link::message::Code;
use crate::restore::{Phase, Progress, Report};
use crate::vitals::Cell;

/// A new attempt is a new backup session and a checkpoint at the source: not more of them than need be.
const DELAY_MIN: Duration = Duration::from_millis(500);
const DELAY_MAX: Duration = Duration::from_secs(30);

/// No node that may be copied answers, and none that answers speaks against this one.
#[derive(Debug, thiserror::Error)]
#[error("no primary answers ({told})")]
pub struct NoPrimary {
    /// What each address had to say.
    pub told: String,
}

/// The primary changed while it was copied.
#[derive(Debug, thiserror::Error)]
#[error("the primary changed during the copy")]
pub struct PrimaryChanged;

/// Makes attempts until one succeeds or fails for another reason than that the source cannot be reached. Gives up when
/// no file was asked for during `patience`, where that is bounded. Cancel-safe as the attempts are.
pub async fn until_copied(
    patience: Option<Duration>,
    progress: &Arc<Cell<Progress>>,
    mut attempt: impl AsyncFnMut() -> anyhow::Result<Report>,
) -> anyhow::Result<Report> {
    let mut delay = DELAY_MIN;
    let mut last_good = Instant::now();
    loop {
        let error = match attempt().await {
            Ok(report) => return Ok(report),
            Err(error) if !is_passing(&error) => return Err(error),
            Err(error) => error,
        };
        let reached = progress.get();
        if reached.phase >= Phase::Copying {
            (delay, last_good) = (DELAY_MIN, Instant::now());
        }
        if patience.is_some_and(|patience| last_good.elapsed() >= patience) {
            return Err(error);
        }
        tracing::warn!(
            done_bytes = reached.done_bytes,
            total_bytes = reached.total_bytes,
            "the copy was cut off, and goes on with what is here: {error:#}"
        );
        progress.update(|progress| progress.phase = Phase::Connecting);
        sleep(delay).await;
        delay = (delay * 2).min(DELAY_MAX);
    }
}

/// Whether another attempt may succeed although nobody does anything here.
fn is_passing(error: &anyhow::Error) -> bool {
    if Fault::outcome_of(error) != Outcome::Failed {
        return false;
    }
    let link = Fault::find::<LinkError>(error);
    let is_sources = |error: &LinkError| match error {
        // Its PostgreSQL was restarted, say.
        LinkError::Rejected(reject) => matches!(reject.code, Code::Failed | Code::NotReady),
        error => error.is_gone(),
    };
    link.is_some_and(is_sources)
        || Fault::find::<NoPrimary>(error).is_some()
        || Fault::find::<PrimaryChanged>(error).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::WithFault;
    use crate::link::message::Reject;

    fn rejected(code: Code) -> anyhow::Error {
        LinkError::Rejected(Box::new(Reject { code, message: "no".into(), hint: String::new() })).into()
    }

    fn report() -> Report {
        Report {
            system_identifier: 1,
            postgres_major: 15,
            segment_size: crate::pg::SegmentSize::new(1 << 20).unwrap(),
            timeline: crate::pg::TimelineId(1),
            start_lsn: crate::pg::Lsn(1),
            stop_lsn: crate::pg::Lsn(2),
            files: 0,
            bytes: 0,
            equal_bytes: 0,
            bad_pages: Vec::new(),
        }
    }

    #[test]
    fn what_passes_is_told_from_what_stays() {
        let hinted = |error: anyhow::Error| Err::<(), _>(error).hint("Look.").unwrap_err();
        assert!(is_passing(&LinkError::Closed.into()));
        assert!(is_passing(&hinted(hinted(LinkError::Closed.into())).context("connect")));
        assert!(is_passing(&hinted(rejected(Code::Failed))) && !is_passing(&rejected(Code::Epoch)));
        assert!(is_passing(&hinted(NoPrimary { told: "db1: silence".into() }.into())));
        assert!(is_passing(&PrimaryChanged.into()));
        assert!(!is_passing(&Fault::refused("it runs", "Stop it.")));
        assert!(!is_passing(&anyhow::anyhow!("the disk is full")));
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_go_on_while_they_get_somewhere() {
        let progress = Arc::new(Cell::<Progress>::default());
        let patience = Some(Duration::from_secs(30));
        let mut attempts = 0;
        let copied = until_copied(patience, &progress, async || {
            attempts += 1;
            progress.update(|progress| progress.phase = Phase::Copying);
            sleep(Duration::from_secs(60)).await;
            if attempts < 50 { Err(LinkError::Closed.into()) } else { Ok(report()) }
        });
        copied.await.unwrap();
        assert_eq!(attempts, 50);

        let (mut attempts, begun) = (0, Instant::now());
        let given_up = until_copied(patience, &progress, async || {
            attempts += 1;
            Err(NoPrimary { told: "silence".into() }.into())
        });
        given_up.await.unwrap_err();
        assert!(begun.elapsed() >= Duration::from_secs(30) && attempts < 20, "{attempts} attempts");
    }
}
