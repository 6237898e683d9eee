//! The commands of a walsender that physical replication needs (`repl_gram.y`). Pure.

use crate::pg::message::backend::ServerMessage;
use crate::pg::{Lsn, TimelineId};

/// SQLSTATE `syntax_error`.
const SYNTAX_ERROR: &str = "42601";
/// SQLSTATE `feature_not_supported`.
const NOT_SUPPORTED: &str = "0A000";

/// One command of a replication client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Command {
    /// Who are you, and how far.
    IdentifySystem,
    /// The value of a setting.
    Show(String),
    /// The history file of a timeline.
    TimelineHistory(TimelineId),
    /// Start to stream. The slot's name is of no concern: the store keeps WAL for its readers by itself.
    StartReplication {
        /// From here.
        start_lsn: Lsn,
        /// On this timeline; on the newest when it is not named.
        timeline: Option<TimelineId>,
    },
    /// A slot that ends with the session, as `wal_receiver_create_temp_slot` makes one.
    CreateTemporarySlot(String),
    /// The state of a slot.
    ReadSlot,
}

impl Command {
    /// Reads a command; what can't be served is refused in PostgreSQL's own way.
    pub(super) fn parse(text: &str) -> Result<Command, ServerMessage> {
        let mut words = Words::new(text)?;
        let command = match words.keyword()?.as_str() {
            "IDENTIFY_SYSTEM" => Command::IdentifySystem,
            "SHOW" => Command::Show(words.name()?),
            "TIMELINE_HISTORY" => Command::TimelineHistory(words.timeline()?),
            "START_REPLICATION" => start_replication(&mut words)?,
            "CREATE_REPLICATION_SLOT" => create_slot(&mut words)?,
            "READ_REPLICATION_SLOT" => words.name().map(|_| Command::ReadSlot)?,
            "SELECT" | "BEGIN" | "BASE_BACKUP" | "UPLOAD_MANIFEST" | "DROP_REPLICATION_SLOT" => {
                return Err(not_supported("this is walship's feed: it serves WAL, and nothing else"));
            }
            _ => return Err(words.syntax_error()),
        };
        words.skip(";");
        if words.is_empty() { Ok(command) } else { Err(words.syntax_error()) }
    }
}

fn start_replication(words: &mut Words) -> Result<Command, ServerMessage> {
    if words.skip("SLOT") {
        words.name()?;
    }
    if words.skip("LOGICAL") {
        return Err(not_supported("walship's feed serves physical replication only"));
    }
    words.skip("PHYSICAL");
    let start_lsn = words.lsn()?;
    let timeline = if words.skip("TIMELINE") { Some(words.timeline()?) } else { None };
    Ok(Command::StartReplication { start_lsn, timeline })
}

/// `CREATE_REPLICATION_SLOT "x" TEMPORARY PHYSICAL [RESERVE_WAL | (RESERVE_WAL [x], …)]`: whatever is reserved, the
/// store has it.
fn create_slot(words: &mut Words) -> Result<Command, ServerMessage> {
    let name = words.name()?;
    let temporary = words.skip("TEMPORARY");
    if !words.skip("PHYSICAL") {
        return Err(not_supported("walship's feed serves physical replication only"));
    }
    if !temporary {
        return Err(not_supported("walship's feed keeps WAL by itself: it has no lasting slots"));
    }
    if !words.skip("RESERVE_WAL") && words.skip("(") {
        while !words.skip(")") {
            words.any()?;
        }
    }
    Ok(Command::CreateTemporarySlot(name))
}

fn not_supported(message: &str) -> ServerMessage {
    ServerMessage::error(NOT_SUPPORTED, message)
}

/// A word of a command; a quoted one is never a keyword.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Word {
    text: String,
    quoted: bool,
}

/// What is left of a command.
struct Words {
    rest: std::vec::IntoIter<Word>,
    whole: String,
}

impl Words {
    /// Cuts a command into words: names, numbers and positions; `"names"` and `'strings'`, in which a doubled quote
    /// is one; and single signs.
    fn new(text: &str) -> Result<Words, ServerMessage> {
        let whole: String = text.chars().take(80).collect();
        let mut words = Vec::new();
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let (word, after) = match first {
                '"' | '\'' => quoted(rest, first).ok_or_else(|| {
                    ServerMessage::error(SYNTAX_ERROR, format!("unterminated quote: {whole}"))
                })?,
                _ => plain(rest),
            };
            words.push(word);
            rest = after.trim_start();
        }
        Ok(Words { rest: words.into_iter(), whole })
    }

    fn is_empty(&self) -> bool {
        self.rest.as_slice().is_empty()
    }

    fn syntax_error(&self) -> ServerMessage {
        ServerMessage::error(SYNTAX_ERROR, format!("not a replication command: {}", self.whole))
    }

    fn any(&mut self) -> Result<Word, ServerMessage> {
        self.rest.next().ok_or_else(|| self.syntax_error())
    }

    /// A keyword, in upper case.
    fn keyword(&mut self) -> Result<String, ServerMessage> {
        let word = self.any()?;
        if word.quoted { Err(self.syntax_error()) } else { Ok(word.text.to_ascii_uppercase()) }
    }

    /// Takes the next word if it is this keyword or sign.
    fn skip(&mut self, keyword: &str) -> bool {
        let next = self.rest.as_slice().first();
        let found = next.is_some_and(|word| !word.quoted && word.text.eq_ignore_ascii_case(keyword));
        if found {
            self.rest.next();
        }
        found
    }

    /// A name; as in SQL, lower case unless it is quoted.
    fn name(&mut self) -> Result<String, ServerMessage> {
        let word = self.any()?;
        let valid = word.quoted || word.text.starts_with(|c: char| c.is_alphabetic() || c == '_');
        match (valid, word.quoted) {
            (false, _) => Err(self.syntax_error()),
            (true, true) => Ok(word.text),
            (true, false) => Ok(word.text.to_lowercase()),
        }
    }

    fn timeline(&mut self) -> Result<TimelineId, ServerMessage> {
        let word = self.any()?;
        let number = word.text.parse().ok().filter(|&number: &u32| number > 0 && !word.quoted);
        number.map(TimelineId).ok_or_else(|| self.syntax_error())
    }

    fn lsn(&mut self) -> Result<Lsn, ServerMessage> {
        let word = self.any()?;
        word.text.parse().ok().filter(|_| !word.quoted).ok_or_else(|| self.syntax_error())
    }
}

/// A word that begins with a quote, and what follows it; `None` when it has no end.
fn quoted(text: &str, quote: char) -> Option<(Word, &str)> {
    let mut content = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c != quote {
            content.push(c);
        } else if chars.next_if(|&(_, next)| next == quote).is_some() {
            content.push(quote);
        } else {
            return Some((Word { text: content, quoted: true }, &text[at + 1..]));
        }
    }
    None
}

/// A word without quotes, or one sign, and what follows it. `text` is not empty.
fn plain(text: &str) -> (Word, &str) {
    let belongs = |c: char| c.is_alphanumeric() || matches!(c, '_' | '/' | '.' | '$');
    let end = match text.find(|c| !belongs(c)) {
        Some(0) => text.chars().next().map_or(0, char::len_utf8),
        Some(end) => end,
        None => text.len(),
    };
    (Word { text: text[..end].to_owned(), quoted: false }, &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn start(lsn: &str, timeline: Option<u32>) -> Command {
        Command::StartReplication { start_lsn: lsn.parse().unwrap(), timeline: timeline.map(TimelineId) }
    }

    #[test]
    fn what_postgresql_14_to_18_send() {
        let slot = || Command::CreateTemporarySlot("pg_walreceiver_42".to_owned());
        for (text, command) in [
            ("IDENTIFY_SYSTEM", Command::IdentifySystem),
            ("TIMELINE_HISTORY 26", Command::TimelineHistory(TimelineId(26))),
            ("START_REPLICATION SLOT \"some_slot\" 0/2000000 TIMELINE 1", start("0/2000000", Some(1))),
            ("START_REPLICATION 1A/2000000 TIMELINE 3", start("1A/2000000", Some(3))),
            ("START_REPLICATION SLOT \"a\"\"b\" PHYSICAL 0/2000000", start("0/2000000", None)),
            ("start_replication physical 0/0;", start("0/0", None)),
            ("CREATE_REPLICATION_SLOT \"pg_walreceiver_42\" TEMPORARY PHYSICAL RESERVE_WAL", slot()),
            ("CREATE_REPLICATION_SLOT \"pg_walreceiver_42\" TEMPORARY PHYSICAL (RESERVE_WAL)", slot()),
            ("CREATE_REPLICATION_SLOT pg_walreceiver_42 TEMPORARY PHYSICAL", slot()),
            ("SHOW wal_segment_size", Command::Show("wal_segment_size".to_owned())),
            ("SHOW \"Mixed\"", Command::Show("Mixed".to_owned())),
            ("READ_REPLICATION_SLOT walship", Command::ReadSlot),
        ] {
            assert_eq!(Command::parse(text), Ok(command), "{text}");
        }
    }

    #[test]
    fn what_is_refused_says_why() {
        for (text, code) in [
            ("", SYNTAX_ERROR),
            (";", SYNTAX_ERROR),
            ("\"IDENTIFY_SYSTEM\"", SYNTAX_ERROR),
            ("IDENTIFY_SYSTEM twice", SYNTAX_ERROR),
            ("TIMELINE_HISTORY", SYNTAX_ERROR),
            ("TIMELINE_HISTORY 0", SYNTAX_ERROR),
            ("TIMELINE_HISTORY 4294967296", SYNTAX_ERROR),
            ("START_REPLICATION 0-1 TIMELINE 1", SYNTAX_ERROR),
            ("START_REPLICATION SLOT \"x 0/1 TIMELINE 1", SYNTAX_ERROR),
            ("START_REPLICATION SLOT 0/1 TIMELINE 1", SYNTAX_ERROR),
            ("SHOW 'x'; DROP", SYNTAX_ERROR),
            ("CREATE_REPLICATION_SLOT x TEMPORARY PHYSICAL (RESERVE_WAL", SYNTAX_ERROR),
            ("CREATE_REPLICATION_SLOT x PHYSICAL", NOT_SUPPORTED),
            ("CREATE_REPLICATION_SLOT x TEMPORARY LOGICAL pgoutput", NOT_SUPPORTED),
            ("START_REPLICATION SLOT x LOGICAL 0/0", NOT_SUPPORTED),
            ("BASE_BACKUP", NOT_SUPPORTED),
            ("SELECT 1", NOT_SUPPORTED),
        ] {
            assert_eq!(Command::parse(text).map_err(|error| error.code), Err(code.to_owned()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_slot_name_is_read_over(name in ".{0,30}", lsn: u64, timeline in 1u32..) {
            let quoted = name.replace('"', "\"\"");
            let text = format!("START_REPLICATION SLOT \"{quoted}\" {} TIMELINE {timeline}", Lsn(lsn));
            prop_assert_eq!(Command::parse(&text), Ok(start(&Lsn(lsn).to_string(), Some(timeline))));
        }

        #[test]
        fn garbage_is_refused(text in "(START_REPLICATION|SHOW|CREATE_REPLICATION_SLOT|)[ \"'()/;.a-zA-Z0-9é\u{0}-\u{20}]{0,40}") {
            let _ = Command::parse(&text);
        }
    }
}
