//! A base backup while it is taken: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::{MissedTickBehavior, interval};

use crate::restore::{Phase, Progress};
use crate::vitals::Cell;

/// How often a bar moves.
const REDRAW_EVERY: Duration = Duration::from_millis(100);
/// How often a line is printed where nobody watches; a change of phase is printed at once.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// While files arrive.
const TEMPLATE: &str =
    "{msg:28} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}";
/// While there is nothing to count.
const TEMPLATE_WAITING: &str = "{msg:28} {spinner} {elapsed}";

/// All bars of this process; whoever else writes to standard error suspends them for as long.
pub fn bars() -> &'static MultiProgress {
    static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
    &BARS
}

/// Does what takes copies now and then, and shows each of them.
pub async fn beside<T>(work: impl AsyncFnOnce(Arc<Cell<Progress>>) -> T) -> T {
    let progress = Arc::new(Cell::<Progress>::default());
    let shown = Arc::clone(&progress);
    let showing = tokio::spawn(async move {
        loop {
            let mut watch = shown.watch();
            // It ends with the process.
            let _ = watch.wait_for(Progress::is_under_way).await;
            show(Arc::clone(&shown)).await;
        }
    });
    let done = work(progress).await;
    showing.abort();
    done
}

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
    let bar = bars().add(ProgressBar::new(0).with_style(style(TEMPLATE_WAITING)));
    let mut tick = interval(REDRAW_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut phase = None;
    loop {
        tick.tick().await;
        let now = progress.get();
        if now.phase == Phase::Idle {
            continue;
        }
        if now.phase == Phase::Done {
            bar.finish_and_clear();
            eprintln!("base backup: {}", summary(&now, bar.elapsed()));
            return;
        }
        if phase != Some(now.phase) {
            phase = Some(now.phase);
            let is_counted = now.phase == Phase::Copying;
            bar.set_style(style(if is_counted { TEMPLATE } else { TEMPLATE_WAITING }));
            bar.set_message(now.phase.to_string());
            // What came before tells nothing about the rate.
            bar.reset_eta();
        }
        bar.set_length(now.total_bytes.max(now.done_bytes));
        bar.set_position(now.done_bytes);
        bar.tick();
    }
}

async fn print(progress: &Cell<Progress>) {
    let began = Instant::now();
    let mut watch = progress.watch();
    let (mut phase, mut phase_began, mut printed_at) = (None, began, began);
    loop {
        let now = *watch.borrow_and_update();
        if now.phase == Phase::Done {
            eprintln!("base backup: {}", summary(&now, began.elapsed()));
            return;
        }
        if now.phase != Phase::Idle && phase != Some(now.phase) {
            (phase, phase_began, printed_at) = (Some(now.phase), Instant::now(), Instant::now());
            eprintln!("base backup: {}", now.phase);
        } else if printed_at.elapsed() >= LINE_EVERY {
            printed_at = Instant::now();
            eprintln!("base backup: {}", line(&now, phase_began.elapsed()));
        }
        // Cancellation-safe; the time-out is for the phases in which nothing changes.
        let changed = tokio::time::timeout(LINE_EVERY, watch.changed()).await;
        if matches!(changed, Ok(Err(_))) {
            return;
        }
    }
}

/// One plain line, some time into a phase: bytes, rate and what is left.
fn line(now: &Progress, in_phase: Duration) -> String {
    if now.phase != Phase::Copying {
        return format!("{}, for {} now", now.phase, HumanDuration(in_phase));
    }
    let rate = now.done_bytes as f64 / in_phase.as_secs_f64().max(0.001);
    let left = now.total_bytes.saturating_sub(now.done_bytes);
    let mut text = format!(
        "{} {} of {} ({:.0} %)",
        now.phase,
        BinaryBytes(now.done_bytes),
        BinaryBytes(now.total_bytes),
        now.done_bytes as f64 * 100.0 / now.total_bytes.max(1) as f64,
    );
    if now.equal_bytes > 0 {
        text.push_str(&format!(", {} of them here already", BinaryBytes(now.equal_bytes)));
    }
    // Before anything came nobody knows how fast it comes.
    if left > 0 && rate >= 1.0 {
        let eta = Duration::from_secs_f64((left as f64 / rate).min(1e9));
        text.push_str(&format!(", {}/s, eta {}", BinaryBytes(rate as u64), HumanDuration(eta)));
    }
    text
}

fn summary(now: &Progress, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64().max(0.001);
    let equal = match now.equal_bytes {
        0 => String::new(),
        bytes => format!(", {} of them here already", BinaryBytes(bytes)),
    };
    // Within one host nothing is compressed.
    let wire = match now.wire_bytes < now.done_bytes {
        true => format!(", {} over the wire", BinaryBytes(now.wire_bytes)),
        false => String::new(),
    };
    format!(
        "{} in {} files in {:.1} s ({}/s){equal}{wire}",
        BinaryBytes(now.done_bytes),
        now.files,
        seconds,
        BinaryBytes((now.done_bytes as f64 / seconds) as u64),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid_and_a_line_says_what_is_left() {
        for template in [TEMPLATE, TEMPLATE_WAITING] {
            ProgressStyle::with_template(template).unwrap();
        }
        let now = Progress {
            phase: Phase::Copying,
            done_bytes: 5 << 20,
            total_bytes: 20 << 20,
            ..Progress::default()
        };
        insta::assert_snapshot!(line(&now, Duration::from_secs(1)), @"copying 5.00 MiB of 20.00 MiB (25 %), 5.00 MiB/s, eta 3 seconds");
        let waiting = Progress { phase: Phase::WaitingForCheckpoint, ..Progress::default() };
        insta::assert_snapshot!(line(&waiting, Duration::from_secs(90)), @"waiting for the checkpoint, for 2 minutes now");
        let compared = Progress { equal_bytes: 4 << 20, ..now };
        insta::assert_snapshot!(line(&compared, Duration::from_secs(1)), @"copying 5.00 MiB of 20.00 MiB (25 %), 4.00 MiB of them here already, 5.00 MiB/s, eta 3 seconds");
        let done = Progress { wire_bytes: 1 << 20, files: 7, ..now };
        insta::assert_snapshot!(summary(&done, Duration::from_secs(2)), @"5.00 MiB in 7 files in 2.0 s (2.50 MiB/s), 1.00 MiB over the wire");
        let done = Progress { equal_bytes: 4 << 20, ..done };
        insta::assert_snapshot!(summary(&done, Duration::from_secs(2)), @"5.00 MiB in 7 files in 2.0 s (2.50 MiB/s), 4.00 MiB of them here already, 1.00 MiB over the wire");
    }
}
