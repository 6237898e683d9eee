//! Timelines and their history files (`access/timeline.h`, `timeline.c`).

use std::fmt;

use super::Lsn;

/// A timeline's number. Never zero, and not an identity: two promotions can take the same one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct TimelineId(pub u32);

/// Where a timeline was left for the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The timeline that ended.
    pub timeline: TimelineId,
    /// Its end.
    pub lsn: Lsn,
    /// PostgreSQL's words, such as `no recovery target specified`.
    pub reason: String,
}

/// The ancestors of a timeline, oldest first: what its `.history` file says. Timeline 1 has none.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct History {
    /// Every switch on the way to this timeline.
    pub switches: Vec<Switch>,
}

/// A history file that PostgreSQL could not have written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HistoryError {
    /// The bytes are not text.
    #[error("the timeline history is not UTF-8 text")]
    NotText,
    /// A line without timeline and LSN.
    #[error("line {line} of the timeline history is not `timeline<TAB>LSN<TAB>reason`: {text:?}")]
    BadLine {
        /// Counted from one.
        line: usize,
        /// The line, at most 80 characters.
        text: String,
    },
    /// Timelines or LSNs that go backwards.
    #[error("line {line} of the timeline history goes backwards")]
    Backwards {
        /// Counted from one.
        line: usize,
    },
}

impl TimelineId {
    /// The first timeline of every cluster.
    pub const FIRST: TimelineId = TimelineId(1);

    /// The name of its history file, `0000000N.history`.
    pub fn history_file_name(self) -> String {
        format!("{:08X}.history", self.0)
    }

    /// Reads the name of a history file back.
    pub fn parse_history_file_name(name: &str) -> Option<TimelineId> {
        let digits = name.strip_suffix(".history").filter(|digits| digits.len() == 8)?;
        u32::from_str_radix(digits, 16).ok().filter(|&number| number > 0).map(TimelineId)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tli {}", self.0)
    }
}

impl History {
    /// Reads a history file. Blank lines and `#` comments occur (pg-facts, U2).
    pub fn parse(bytes: &[u8]) -> Result<History, HistoryError> {
        let text = std::str::from_utf8(bytes).map_err(|_| HistoryError::NotText)?;
        let mut switches: Vec<Switch> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.trim_start().starts_with('#') {
                continue;
            }
            let switch = parse_line(line).ok_or_else(|| HistoryError::BadLine {
                line: index + 1,
                text: line.chars().take(80).collect(),
            })?;
            if switches.last().is_some_and(|last| last.timeline >= switch.timeline || last.lsn > switch.lsn) {
                return Err(HistoryError::Backwards { line: index + 1 });
            }
            switches.push(switch);
        }
        Ok(History { switches })
    }

    /// Where `timeline` ended, when it is an ancestor.
    pub fn switch_of(&self, timeline: TimelineId) -> Option<&Switch> {
        self.switches.iter().find(|switch| switch.timeline == timeline)
    }

    /// The timeline this one was branched from, and where; `None` for the first.
    pub fn parent(&self) -> Option<&Switch> {
        self.switches.last()
    }
}

fn parse_line(line: &str) -> Option<Switch> {
    let mut fields = line.trim().splitn(3, |c: char| c.is_ascii_whitespace());
    let timeline = fields.next()?.parse().ok().filter(|&number: &u32| number > 0)?;
    let lsn = fields.next()?.parse().ok()?;
    Some(Switch {
        timeline: TimelineId(timeline),
        lsn,
        reason: fields.next().unwrap_or("").trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_with_blank_lines_and_comments() {
        let text = b"1\t0/5000098\tno recovery target specified\n\n# by hand\n3\t0/8010F38\tat restore point \"x\"\n";
        let history = History::parse(text).unwrap();
        assert_eq!(history.switches.len(), 2);
        assert_eq!(history.parent().unwrap().timeline, TimelineId(3));
        assert_eq!(history.switch_of(TimelineId(1)).unwrap().lsn, "0/5000098".parse().unwrap());
        assert_eq!(history.switch_of(TimelineId(2)), None);
    }

    #[test]
    fn foreign_bytes_are_refused() {
        assert_eq!(History::parse(&[0xFF, 0xFE]), Err(HistoryError::NotText));
        assert!(matches!(History::parse(b"one 0/1 x"), Err(HistoryError::BadLine { line: 1, .. })));
        assert!(matches!(History::parse(b"0\t0/1\tx"), Err(HistoryError::BadLine { line: 1, .. })));
        assert_eq!(History::parse(b"2\t0/2\tx\n1\t0/3\tx\n"), Err(HistoryError::Backwards { line: 2 }));
    }

    #[test]
    fn file_names() {
        assert_eq!(TimelineId(26).history_file_name(), "0000001A.history");
        assert_eq!(TimelineId::parse_history_file_name("0000001A.history"), Some(TimelineId(26)));
        assert_eq!(TimelineId::parse_history_file_name("00000000.history"), None);
        assert_eq!(TimelineId::parse_history_file_name("1A.history"), None);
    }
}
