//! A base backup while it is taken: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, HumanDuration, ProgressBar, ProgressStyle};
use tokio::time::{MissedTickBehavior, interval};

use crate::restore::{Phase, Progress};
use crate::vitals::Cell;

/// How often a bar moves.
const REDRAW_EVERY: Duration = Duration::from_millis(100);
/// How often a line is printed where nobody watches; a change of phase is printed at once.
const LINE_EVERY: Duration = Duration::from_secs(10);

const TEMPLATE: &str =
    "{msg:28} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}";
const TEMPLATE_UNSIZED: &str = "{msg:28} {spinner} {elapsed}";

/// Shows the progress until the copy is complete, or until it is dropped.
pub async fn show(progress: Arc<Cell<Progress>>) {
    if std::io::stderr().is_terminal() {
        draw(&progress).await;
    } else {
        print(&progress).await;
    }
}

async fn draw(progress: &Cell<Progress>) {
    // The templates are constants that the tests try.
    let style =
        |template| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style(TEMPLATE_UNSIZED));
    let mut tick = interval(REDRAW_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut sized = false;
    loop {
        tick.tick().await;
        let now = progress.get();
        if now.total_bytes > 0 && !sized {
            sized = true;
            bar.set_style(style(TEMPLATE));
            bar.reset_eta();
        }
        bar.set_length(now.total_bytes.max(now.done_bytes));
        bar.set_position(now.done_bytes);
        bar.set_message(now.phase.to_string());
        bar.tick();
        if now.phase == Phase::Done {
            bar.finish_with_message(summary(&now, bar.elapsed()));
            return;
        }
    }
}

async fn print(progress: &Cell<Progress>) {
    let began = Instant::now();
    let mut watch = progress.watch();
    let (mut phase, mut printed_at) = (None, Instant::now());
    loop {
        let now = *watch.borrow_and_update();
        if phase != Some(now.phase) || printed_at.elapsed() >= LINE_EVERY {
            (phase, printed_at) = (Some(now.phase), Instant::now());
            let text = if now.phase == Phase::Done {
                summary(&now, began.elapsed())
            } else {
                line(&now, began.elapsed())
            };
            eprintln!("base backup: {text}");
        }
        if now.phase == Phase::Done {
            return;
        }
        // Cancellation-safe; the time-out is for the phases in which nothing changes.
        let changed = tokio::time::timeout(LINE_EVERY, watch.changed()).await;
        if matches!(changed, Ok(Err(_))) {
            return;
        }
    }
}

/// One plain line: phase, bytes, rate and what is left.
fn line(now: &Progress, elapsed: Duration) -> String {
    if now.total_bytes == 0 {
        return format!("{} ({})", now.phase, HumanDuration(elapsed));
    }
    let rate = now.done_bytes as f64 / elapsed.as_secs_f64().max(0.001);
    let left = now.total_bytes.saturating_sub(now.done_bytes);
    let mut text = format!(
        "{} {} of {} ({:.0} %)",
        now.phase,
        BinaryBytes(now.done_bytes),
        BinaryBytes(now.total_bytes),
        now.done_bytes as f64 * 100.0 / now.total_bytes as f64,
    );
    // Before anything came nobody knows how fast it comes.
    if left > 0 && rate >= 1.0 {
        let eta = Duration::from_secs_f64((left as f64 / rate).min(1e9));
        text.push_str(&format!(", {}/s, eta {}", BinaryBytes(rate as u64), HumanDuration(eta)));
    }
    text
}

fn summary(now: &Progress, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64().max(0.001);
    format!(
        "{} in {} files in {:.1} s ({}/s), {} over the wire",
        BinaryBytes(now.done_bytes),
        now.files,
        seconds,
        BinaryBytes((now.done_bytes as f64 / seconds) as u64),
        BinaryBytes(now.wire_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid_and_a_line_says_what_is_left() {
        for template in [TEMPLATE, TEMPLATE_UNSIZED] {
            ProgressStyle::with_template(template).unwrap();
        }
        let now = Progress {
            phase: Phase::Copying,
            done_bytes: 5 << 20,
            total_bytes: 20 << 20,
            ..Progress::default()
        };
        insta::assert_snapshot!(line(&now, Duration::from_secs(1)), @"copying 5.00 MiB of 20.00 MiB (25 %), 5.00 MiB/s, eta 3 seconds");
    }
}
