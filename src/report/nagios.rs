//! Lag as a monitoring plugin says it: one line, then `|` and performance data.
//!
//! `LABEL=VALUE[UNIT];WARN;CRIT;MIN`, labels in single quotes; `U` for what is not known
//! (<https://www.monitoring-plugins.org/doc/guidelines.html>). The exit code is [`Level::code`].

use std::time::Duration;

use super::lag::{LagReport, Link, Stage, StandbyLag};
use super::threshold::{Amount, Level, Limits};
use super::{table, units};

/// One line with its end.
pub fn render(report: &LagReport, limits: &Limits) -> String {
    let mut said = report.alarms.clone();
    said.extend(report.standbys.iter().map(|standby| sentence(standby, limits)));
    if report.standbys.is_empty() && report.notes.is_empty() {
        said.push("no standby is known here".to_owned());
    }
    said.extend(report.notes.iter().cloned());
    let data: Vec<String> = report.standbys.iter().flat_map(|standby| performance(standby, limits)).collect();
    let separator = if data.is_empty() { "" } else { " | " };
    let level = report.level(limits);
    format!("WALSHIP {level} - {}{separator}{}\n", plain(&said.join("; ")), data.join(" "))
}

/// The line of a check that could not be made.
pub fn failed(reason: &str) -> String {
    format!("WALSHIP {} - {}\n", Level::Unknown, plain(reason))
}

/// A standby in a few words.
fn sentence(standby: &StandbyLag, limits: &Limits) -> String {
    let silence = match standby.link {
        Link::Up(_) => String::new(),
        Link::Cut(Some(age)) => format!(" not heard for {},", units::duration(age)),
        Link::Cut(None) => " never heard,".to_owned(),
    };
    let stages = Stage::ALL.map(|stage| format!("{} {}", stage.name(), table::behind(standby.stage(stage))));
    format!("{} {}:{silence} {}", standby.name, standby.level(limits), stages.join(", "))
}

fn performance(standby: &StandbyLag, limits: &Limits) -> Vec<String> {
    let mut data = Vec::with_capacity(7);
    for stage in Stage::ALL {
        let behind = standby.stage(stage);
        let bytes = number(behind.bytes, 'B', |bytes| bytes.to_string());
        let seconds = number(behind.time, 's', |time| time.as_secs_f64().to_string());
        let label = |unit: &str| label(&format!("{}_{}_{unit}", standby.name, stage.name()));
        data.push(format!("{}={bytes};{}", label("bytes"), byte_limits(limits)));
        data.push(format!("{}={seconds};{}", label("seconds"), time_limits(limits)));
    }
    let contact = match standby.link {
        Link::Up(Some(age)) | Link::Cut(Some(age)) => format!("{}s", age.as_secs_f64()),
        Link::Up(None) | Link::Cut(None) => "U".to_owned(),
    };
    data.push(format!(
        "{}={contact};{}",
        label(&format!("{}_contact_seconds", standby.name)),
        time_limits(limits)
    ));
    data
}

/// A lower bound is a number as well: the text before the `|` says that it is one.
fn number<T>(amount: Amount<T>, unit: char, show: impl Fn(T) -> String) -> String {
    match amount {
        Amount::Known(value) | Amount::AtLeast(value) => format!("{}{unit}", show(value)),
        Amount::Unknown => "U".to_owned(),
    }
}

fn byte_limits(limits: &Limits) -> String {
    let show = |bytes: Option<u64>| bytes.map_or_else(String::new, |bytes| bytes.to_string());
    format!("{};{};0", show(limits.warn.bytes), show(limits.crit.bytes))
}

fn time_limits(limits: &Limits) -> String {
    let show = |time: Option<Duration>| time.map_or_else(String::new, |time| time.as_secs_f64().to_string());
    format!("{};{};0", show(limits.warn.time), show(limits.crit.time))
}

/// In single quotes; what a label or the line may not hold is left out.
fn label(text: &str) -> String {
    format!("'{}'", text.replace(['\'', '=', '|', '\n'], ""))
}

/// The text ends at the first `|` and at the first line end.
fn plain(text: &str) -> String {
    text.replace(['|', '\n'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::lag::Behind;

    #[test]
    fn an_alarm_is_critical_however_small_the_lag() {
        let alarms = vec!["the store is full".to_owned()];
        let line = render(&LagReport { alarms, ..LagReport::default() }, &Limits::default());
        assert_eq!(line, "WALSHIP CRITICAL - the store is full; no standby is known here\n");
    }

    #[test]
    fn what_is_not_known_is_u_and_names_cannot_break_the_line() {
        let standby = StandbyLag {
            name: "d'b|=\n2".to_owned(),
            link: Link::Cut(None),
            ship: Behind::UNKNOWN,
            flush: Behind::UNKNOWN,
            replay: Behind::UNKNOWN,
        };
        let notes = vec!["a note | of two\nlines".to_owned()];
        let report = LagReport { standbys: vec![standby], notes, ..LagReport::default() };
        let line = render(&report, &Limits::default());
        assert_eq!((line.matches('|').count(), line.lines().count()), (1, 1), "{line}");
        assert!(line.starts_with("WALSHIP UNKNOWN - "), "{line}");
        assert!(line.contains("never heard") && line.contains("ship unknown"), "{line}");
        assert_eq!(line.matches("=U;;;0").count(), 7, "{line}");
    }
}
