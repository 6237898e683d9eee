//! `walship demo`: the whole of it on this machine, told as it goes.

use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use super::exit::{self, Exit};
use super::{output, privilege, runtime};
use crate::demo::stage::Stage;
use crate::demo::story::{self, Options};
use crate::demo::summary::Summary;
use crate::demo::told::{Teller, Told};
use crate::fault::WithFault;
use crate::report::units;

/// What lines are broken at.
const COLUMNS: usize = 80;

/// How often progress is printed where nobody watches.
const LINE_EVERY: Duration = Duration::from_secs(5);

const TEMPLATE: &str = "   {bar:30} {binary_bytes} of {binary_total_bytes}  {msg}";

/// Show all of it on this machine: a primary, two standbys, a failover
///
/// Makes three real PostgreSQL servers in a temporary folder and runs the real commands. Copies the primary while it
/// is written to, shows the lag, cuts a link, kills the primary, promotes a standby, and compares every row. Takes
/// about a minute, ends all it started and removes the folder.
#[derive(clap::Args, Debug)]
#[command(after_long_help = exit::explained(&[
    (0, "every row that was acknowledged and shipped is there"),
    (1, "it failed, or something differs"),
    (2, "wrong usage"),
], &[
    ("All of it, in about a minute:", "walship demo"),
    ("Leave it running, to look around:", "walship demo --keep"),
]))]
pub struct Args {
    /// Leave it running, and print how to look around
    #[arg(long)]
    keep: bool,
    /// Rows that the primary holds before it is copied
    #[arg(long, value_name = "N", default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    rows: u64,
    /// How long the lag is watched
    #[arg(long, value_name = "SECONDS", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
}

/// Plays it.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    privilege::become_postgres()?;
    let stage = Stage::new(args.keep)?;
    let options = Options { rows: args.rows, seconds: args.seconds };
    print(&format!(
        "walship demo: a primary, two standbys and a failover on this machine\n\
         everything is in {}\n",
        stage.folder().display()
    ));
    let mut screen = Screen::new();
    let runtime = runtime()?;
    let mut listener = |told: Told<'_>| screen.show(told);
    let played = runtime.block_on(async {
        // What is dropped here ends the processes that it started.
        tokio::select! {
            played = story::play(&stage, options, Teller::new(&mut listener)) => played.map(Some),
            interrupted = interrupted() => interrupted.map(|()| None),
        }
    });
    screen.end_progress();
    match played {
        Ok(Some(summary)) => {
            print(&format!("\nSummary\n{summary}"));
            if args.keep {
                print(&look_around(&stage, &summary));
            }
            Ok(Exit::Done)
        }
        Ok(None) => Err(anyhow::anyhow!("the demo was interrupted")).hint(what_is_left(&stage)),
        Err(error) => {
            eprint!("\n{}", stage.logs());
            Err(error).hint(what_is_left(&stage))
        }
    }
}

/// Returns once somebody wants it to end.
async fn interrupted() -> anyhow::Result<()> {
    let listen = |kind| signal(kind).context("listen for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    // Cancellation-safe: a signal that was not taken stays pending.
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    Ok(())
}

/// What there is to look at after a demo that did not come to its end.
fn what_is_left(stage: &Stage) -> String {
    match stage.keep {
        true => format!("All of it is left as it is; {} ends it.", stage.stop_script().display()),
        false => "All of it was ended and removed; with --keep it stays, logs included.".to_owned(),
    }
}

/// What may be done with what was kept.
fn look_around(stage: &Stage, summary: &Summary) -> String {
    let (folder, program) = (stage.folder().display(), stage.program().display());
    let (primary, follower) = (summary.primary, summary.follower);
    format!(
        "\nIt goes on: {primary} is the primary, {follower} follows, db1 is down. To look around:\n\
         \x20  cd {folder}/{primary}\n\
         \x20  {program} status\n\
         \x20  psql -h $PWD/socket -U postgres postgres\n\
         \x20  less walship.log walship.toml\n\
         This ends all of it and removes the folder:\n\
         \x20  {}\n",
        stage.stop_script().display()
    )
}

/// The story on a terminal, or in a file.
struct Screen {
    is_terminal: bool,
    bar: Option<ProgressBar>,
    /// What was last said to be done, and when.
    phase: String,
    progress_at: Option<Instant>,
}

impl Screen {
    fn new() -> Screen {
        Screen { is_terminal: stdout().is_terminal(), bar: None, phase: String::new(), progress_at: None }
    }

    fn show(&mut self, told: Told<'_>) {
        if let Told::Progress { phase, done_bytes, total_bytes } = told {
            return self.progress(phase, done_bytes, total_bytes);
        }
        self.end_progress();
        match told {
            Told::Part(title) => print(&format!("\n{title}\n")),
            Told::Line(line) => print(&broken(line, "   ", "     ", "")),
            Told::Command { node, line } => {
                print(&broken(line, &format!("   {node}$ "), "           ", " \\"));
            }
            Told::Output(line) => print(&broken(line, "   | ", "   |   ", "")),
            Told::Progress { .. } => {}
        }
    }

    fn progress(&mut self, phase: &str, done_bytes: u64, total_bytes: u64) {
        // Files grow while they are copied.
        let total_bytes = total_bytes.max(done_bytes);
        if self.is_terminal && total_bytes > 0 {
            let bar = self.bar.get_or_insert_with(new_bar);
            bar.set_length(total_bytes);
            bar.set_position(done_bytes);
            bar.set_message(phase.to_owned());
            return;
        }
        let is_moving = done_bytes < total_bytes;
        let is_due = self.progress_at.is_none_or(|at| is_moving && at.elapsed() >= LINE_EVERY);
        if self.phase == phase && !is_due {
            return;
        }
        (self.phase, self.progress_at) = (phase.to_owned(), Some(Instant::now()));
        match is_moving {
            true => {
                print(&format!("   {phase}: {} of {}\n", units::size(done_bytes), units::size(total_bytes)))
            }
            false => print(&format!("   {phase}\n")),
        }
    }

    /// The bar goes; what it came to is told in a line.
    fn end_progress(&mut self) {
        self.phase.clear();
        self.progress_at = None;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn new_bar() -> ProgressBar {
    // The template is a constant that a test tries.
    let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stdout()).with_style(style)
}

/// Prints. Somebody who no longer listens is no reason to stop: the exit code still tells.
fn print(text: &str) {
    let _ = output::print(text);
}

/// A line broken between words where it would be too wide, but not after a flag; `more` stands at the end of each
/// line but the last.
fn broken(line: &str, first: &str, next: &str, more: &str) -> String {
    let mut parts: Vec<String> = Vec::new();
    for word in line.split(' ') {
        match parts.last_mut() {
            Some(flag) if flag.starts_with('-') && !flag.contains(' ') && !word.starts_with('-') => {
                flag.push_str(&format!(" {word}"));
            }
            _ => parts.push(word.to_owned()),
        }
    }
    let mut text = first.to_owned();
    let mut column = first.len();
    for (index, part) in parts.iter().enumerate() {
        let width = part.chars().count();
        if index > 0 && column + 1 + width + more.len() > COLUMNS {
            text.push_str(&format!("{more}\n{next}"));
            column = next.len();
        } else if index > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(part);
        column += width;
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_valid() {
        ProgressStyle::with_template(TEMPLATE).unwrap();
    }

    #[test]
    fn long_lines_are_broken_between_words_and_columns_stay() {
        let line = "walship standby --join ../db1/db2.join -D data -k $PWD/socket --listen 127.0.0.1:40001";
        let text = broken(line, "   db2$ ", "           ", " \\");
        assert!(text.lines().all(|line| line.len() <= COLUMNS) && text.lines().count() == 2, "{text}");
        assert_eq!(text.replace(" \\\n          ", "").trim(), format!("db2$ {line}"));
        assert_eq!(broken("a   b", "| ", "", ""), "| a   b\n");
    }
}
