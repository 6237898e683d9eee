//! The language of the scenes: a title, then one step a line.
//!
//! It knows words and which nodes there are, and nothing of what the steps do. What is wrong is said with file, line and
//! word.

use std::collections::VecDeque;
use std::fmt::{Display, Formatter};

use super::scene::{Act, Outcome, Part, Run, Scene, Step};

/// What is wrong with a scene.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong {
    file: String,
    line: usize,
    word: String,
    what: String,
}

impl Display for Wrong {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {:?}: {}", self.file, self.line, self.word, self.what)
    }
}

/// Reads a scene.
pub fn parse(file: &str, text: &str) -> Result<Scene, Wrong> {
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim_end()));
    let mut lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).peekable();
    let wrong = |line, word: &str, what: String| {
        Err(Wrong { file: file.to_owned(), line, word: word.to_owned(), what })
    };
    let Some((_, title)) = lines.next() else {
        return wrong(1, "", "a title comes first: what must hold, and why".to_owned());
    };
    let (mut steps, mut nodes): (Vec<Step>, Vec<String>) = (Vec::new(), Vec::new());
    while let Some((number, line)) = lines.next() {
        let mut words = match Words::of(line, &nodes) {
            Ok(words) => words,
            Err(what) => return wrong(number, line, what),
        };
        let act = if line == "together:" {
            let mut runs = Vec::new();
            while let Some((number, line)) = lines.next_if(|(_, line)| line.starts_with(' ')) {
                match Words::of(line, &nodes).and_then(|mut words| words.whole_run()) {
                    Ok(run) => runs.push(run),
                    Err(what) => return wrong(number, line.trim(), what),
                }
            }
            match <[Run; 2]>::try_from(runs) {
                Ok(runs) => Act::Together(Box::new(runs)),
                Err(_) => return wrong(number, line, "two runs follow, indented".to_owned()),
            }
        } else {
            match words.act() {
                Ok(act) => act,
                Err(what) => return wrong(number, &words.last, what),
            }
        };
        match &act {
            Act::Nodes(named) if steps.is_empty() => nodes.clone_from(named),
            Act::Nodes(_) => return wrong(number, "nodes", "it comes once, first".to_owned()),
            _ if steps.is_empty() => return wrong(number, &words.last, "`nodes` comes first".to_owned()),
            _ => {}
        }
        steps.push(Step { line: number, text: line.to_owned(), act });
    }
    Ok(Scene { title: title.to_owned(), steps })
}

/// A word, or what stands in quotes, where signs mean nothing.
struct Word {
    text: String,
    is_quoted: bool,
}

/// The words of a line that are not read yet.
struct Words<'a> {
    line: &'a str,
    nodes: &'a [String],
    rest: VecDeque<Word>,
    /// Read last: what an error is about.
    last: String,
}

impl<'a> Words<'a> {
    fn of(line: &'a str, nodes: &'a [String]) -> Result<Words<'a>, String> {
        let (mut rest, mut left) = (VecDeque::new(), line.trim_start());
        while let Some(first) = left.chars().next() {
            let (text, after) = if first == '"' || first == '\'' {
                left[1..].split_once(first).ok_or_else(|| format!("{first} is not closed"))?
            } else {
                left.split_once(' ').unwrap_or((left, ""))
            };
            rest.push_back(Word { text: text.to_owned(), is_quoted: first == '"' || first == '\'' });
            left = after.trim_start();
        }
        Ok(Words { line, nodes, rest, last: String::new() })
    }

    fn next(&mut self, what: &str) -> Result<String, String> {
        let word = self.rest.pop_front().ok_or_else(|| format!("{what} follows"))?;
        self.last.clone_from(&word.text);
        Ok(word.text)
    }

    /// Takes the word if it comes next.
    fn takes(&mut self, sign: &str) -> bool {
        let is_next = self.rest.front().is_some_and(|word| !word.is_quoted && word.text == sign);
        if is_next {
            self.rest.pop_front();
        }
        is_next
    }

    fn node(&mut self) -> Result<String, String> {
        let word = self.next("a node's name")?;
        self.is_node(&word)?;
        Ok(word)
    }

    fn is_node(&self, word: &str) -> Result<(), String> {
        let is_one = self.nodes.iter().any(|node| node == word);
        if is_one { Ok(()) } else { Err(format!("no node; these are: {}", self.nodes.join(" "))) }
    }

    /// `db1:`
    fn node_of(&mut self) -> Result<String, String> {
        let word = self.next("a node's name and a colon")?;
        let name = word.strip_suffix(':').ok_or("a colon follows the node's name")?;
        self.is_node(name)?;
        Ok(name.to_owned())
    }

    fn quoted(&mut self) -> Result<String, String> {
        let is_quoted = self.rest.front().is_some_and(|word| word.is_quoted);
        let word = self.next("a text in quotes")?;
        if is_quoted { Ok(word) } else { Err("a text in quotes is expected".to_owned()) }
    }

    fn part(&mut self) -> Result<Part, String> {
        if self.rest.front().is_none_or(|word| word.text == "with") {
            return Ok(Part::Both);
        }
        match self.next("a part")?.as_str() {
            "postgres" => Ok(Part::Postgres),
            "sidecar" => Ok(Part::Sidecar),
            _ => Err("neither postgres nor sidecar".to_owned()),
        }
    }

    /// All that stands after the first occurrence of a text in the line.
    fn raw_after(&mut self, sign: &str) -> Result<String, String> {
        self.rest.clear();
        let (_, raw) = self.line.split_once(sign).unwrap_or_default();
        let raw = raw.trim();
        if raw.is_empty() { Err("something follows".to_owned()) } else { Ok(raw.to_owned()) }
    }

    fn end(&mut self) -> Result<(), String> {
        match self.next("") {
            Err(_) => Ok(()),
            Ok(_) => Err("nothing more is expected here".to_owned()),
        }
    }

    fn act(&mut self) -> Result<Act, String> {
        let act = match self.next("a verb")?.as_str() {
            "nodes" => self.named()?,
            "upstream" => Act::Upstream(self.node()?, self.node()?),
            "policy" => Act::Policy(self.raw_after("policy")?),
            "write" => {
                let rows = self.next("a number of rows")?;
                Act::Write(rows.parse().map_err(|_| "no number of rows")?)
            }
            "writes" => match self.next("start or stop")?.as_str() {
                "start" => Act::WritesStart,
                "stop" => Act::WritesStop,
                _ => return Err("neither start nor stop".to_owned()),
            },
            "kept" => Act::Kept,
            "cut" => self.cut()?,
            "heal" => Act::Heal,
            "freeze" => Act::Freeze(self.node()?, self.part()?),
            "thaw" => Act::Thaw(self.node()?),
            "stop" => Act::Stop(self.node()?, self.part()?),
            "kill" => Act::Kill(self.node()?, self.part()?),
            "start" => self.start()?,
            "ended" => Act::Ended(self.node()?),
            "run" => Act::Run(self.run()?),
            "sql" => self.sql()?,
            "eventually" => Act::Eventually(self.node_of()?, self.quoted()?),
            "log" => Act::Log(self.node_of()?, self.quoted()?),
            "primary" => self.primary()?,
            "one" if self.takes("primary") => Act::OnePrimary,
            "follows" => Act::Follows(self.node()?),
            "down" => Act::Down(self.node()?),
            "idle" => Act::Idle(self.node()?),
            "equal" => Act::Equal,
            "wipe" => Act::Wipe(self.node()?),
            "join" => Act::Join(self.node()?),
            "snapshot" => Act::Snapshot(self.node()?),
            "restore" => Act::Restore(self.node()?),
            "fill" => Act::Fill(self.node()?),
            "room" => Act::Room(self.node()?),
            "clock" => Act::Clock(self.node()?, self.hours()?),
            _ => return Err("no verb of this language".to_owned()),
        };
        self.end()?;
        Ok(act)
    }

    fn named(&mut self) -> Result<Act, String> {
        let mut names = vec![self.next("the primary's name")?];
        while !self.rest.is_empty() {
            let name = self.next("a name")?;
            if names.contains(&name) {
                return Err("there is one of this name already".to_owned());
            }
            names.push(name);
        }
        Ok(Act::Nodes(names))
    }

    fn cut(&mut self) -> Result<Act, String> {
        let one = self.node()?;
        let is_one_way = self.takes(">");
        let other = self.node()?;
        if one == other {
            return Err("it has no link to itself".to_owned());
        }
        Ok(if is_one_way { Act::CutOneWay(one, other) } else { Act::Cut(one, other) })
    }

    /// `-2h`, in seconds.
    fn hours(&mut self) -> Result<i64, String> {
        let word = self.next("hours ahead, such as 2h or -2h,")?;
        let hours = word.strip_suffix('h').and_then(|hours| hours.parse::<i32>().ok());
        hours.map(|hours| i64::from(hours) * 3600).ok_or_else(|| "neither 2h nor -2h".to_owned())
    }

    fn start(&mut self) -> Result<Act, String> {
        let (node, part) = (self.node()?, self.part()?);
        let failpoints = if self.takes("with") { self.next("POINT=ACTION")? } else { String::new() };
        Ok(Act::Start { node, part, failpoints })
    }

    fn primary(&mut self) -> Result<Act, String> {
        if self.next("is")? != "is" {
            return Err("`primary is NODE` is meant".to_owned());
        }
        let names = self.next("a node's name")?;
        let names: Vec<String> = names.split('|').map(str::to_owned).collect();
        names.iter().try_for_each(|name| self.is_node(name))?;
        Ok(Act::PrimaryIs(names))
    }

    fn sql(&mut self) -> Result<Act, String> {
        let node = self.node_of()?;
        let raw = self.raw_after(": ")?;
        let (statement, value) = match raw.rsplit_once(" -> ") {
            Some((statement, value)) => (statement.to_owned(), Some(value.trim().to_owned())),
            None => (raw, None),
        };
        Ok(Act::Sql { node, statement, value })
    }

    fn whole_run(&mut self) -> Result<Run, String> {
        let run = self.run()?;
        self.end()?;
        Ok(run)
    }

    fn run(&mut self) -> Result<Run, String> {
        let node = self.node_of()?;
        if self.next("walship")? != "walship" {
            return Err("only walship is run".to_owned());
        }
        let mut arguments = Vec::new();
        let mut outcomes = Vec::new();
        while !self.rest.is_empty() && !self.takes("->") {
            arguments.push(self.next("an argument")?);
        }
        while !self.rest.is_empty() {
            let code = self.next("an exit code")?.parse().map_err(|_| "no exit code")?;
            let mut texts = Vec::new();
            while self.rest.front().is_some_and(|word| word.is_quoted) {
                texts.push(self.quoted()?);
            }
            outcomes.push(Outcome { code, texts });
            if !self.rest.is_empty() && !self.takes("|") {
                self.next("")?;
                return Err("a text in quotes, or | and another outcome, is expected".to_owned());
            }
        }
        if outcomes.is_empty() {
            return Err("how it ends follows: -> EXIT \"text\"".to_owned());
        }
        Ok(Run { node, arguments, outcomes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn act(line: &str) -> Result<Act, String> {
        let scene = parse("a.scene", &format!("Title\n\nnodes db1 db2\n{line}\n"));
        scene.map(|mut scene| scene.steps.remove(1).act).map_err(|wrong| wrong.to_string())
    }

    fn outcome(code: i32, texts: &[&str]) -> Outcome {
        Outcome { code, texts: texts.iter().map(|text| (*text).to_owned()).collect() }
    }

    #[test]
    fn steps_are_read_and_comments_are_not() {
        let text = "What must hold.\n# why\n\nnodes db1 db2\n  # no step\nwrite 10\n";
        let wrong = parse("a.scene", text).unwrap_err().to_string();
        assert_eq!(wrong, "a.scene:5: \"#\": no verb of this language");
        let scene = parse("a.scene", &text.replace("  #", "#")).unwrap();
        assert_eq!(scene.title, "What must hold.");
        assert_eq!(scene.steps.len(), 2);
        let last = Step { line: 6, text: "write 10".to_owned(), act: Act::Write(10) };
        assert_eq!(scene.steps[1], last);
    }

    #[test]
    fn links_and_processes_have_directions_and_parts() {
        let [db1, db2] = ["db1", "db2"].map(str::to_owned);
        assert_eq!(act("cut db1 db2"), Ok(Act::Cut(db1.clone(), db2.clone())));
        assert_eq!(act("cut db1 > db2"), Ok(Act::CutOneWay(db1.clone(), db2)));
        assert_eq!(act("kill db1"), Ok(Act::Kill(db1.clone(), Part::Both)));
        assert_eq!(act("freeze db1 sidecar"), Ok(Act::Freeze(db1.clone(), Part::Sidecar)));
        let start = |part, failpoints: &str| Act::Start {
            node: db1.clone(),
            part,
            failpoints: failpoints.to_owned(),
        };
        assert_eq!(act("start db1"), Ok(start(Part::Both, "")));
        assert_eq!(act("start db1 with a=abort"), Ok(start(Part::Both, "a=abort")));
        assert_eq!(act("start db1 sidecar with a=abort"), Ok(start(Part::Sidecar, "a=abort")));
    }

    #[test]
    fn disks_are_filled_and_clocks_go_wrong() {
        let db2 = || "db2".to_owned();
        assert_eq!(act("fill db2"), Ok(Act::Fill(db2())));
        assert_eq!(act("room db2"), Ok(Act::Room(db2())));
        assert_eq!(act("clock db2 -2h"), Ok(Act::Clock(db2(), -7200)));
        assert_eq!(act("clock db2 3h"), Ok(Act::Clock(db2(), 10_800)));
        let scene = parse("a.scene", "Title\nnodes db1 db2\nfill db2\nroom db2\nroom db1").unwrap();
        assert_eq!(scene.filled(), ["db2"].into());
    }

    #[test]
    fn commands_have_outcomes() {
        let line = "db2: walship promote --fence-command 'exit 7' -> 3 \"no -> power\" \"x\" | 0";
        let run = Run {
            node: "db2".to_owned(),
            arguments: ["promote", "--fence-command", "exit 7"].map(str::to_owned).to_vec(),
            outcomes: vec![outcome(3, &["no -> power", "x"]), outcome(0, &[])],
        };
        assert_eq!(act(&format!("run {line}")), Ok(Act::Run(run.clone())));
        assert_eq!(
            act(&format!("together:\n  {line}\n  {line}")),
            Ok(Act::Together(Box::new([run.clone(), run])))
        );
        let sql = |statement: &str, value: Option<&str>| Act::Sql {
            node: "db1".to_owned(),
            statement: statement.to_owned(),
            value: value.map(str::to_owned),
        };
        assert_eq!(act("sql db1: SELECT 'a' -> a"), Ok(sql("SELECT 'a'", Some("a"))));
        assert_eq!(act("sql db1: CHECKPOINT"), Ok(sql("CHECKPOINT", None)));
        assert_eq!(act("policy any 1 (*)"), Ok(Act::Policy("any 1 (*)".to_owned())));
        assert_eq!(act("log db1: \"can't\""), Ok(Act::Log("db1".to_owned(), "can't".to_owned())));
        let either = ["db1", "db2"].map(str::to_owned).to_vec();
        assert_eq!(act("primary is db1|db2"), Ok(Act::PrimaryIs(either)));
    }

    #[test]
    fn what_is_wrong_is_said_with_file_line_and_word() {
        let wrongs = [
            ("wibble db1", "\"wibble\": no verb of this language"),
            ("kill db3", "\"db3\": no node; these are: db1 db2"),
            ("kill db1 host", "\"host\": neither postgres nor sidecar"),
            ("kill", "\"kill\": a node's name follows"),
            ("kept db1", "\"db1\": nothing more is expected here"),
            ("write many", "\"many\": no number of rows"),
            ("cut db1 db1", "\"db1\": it has no link to itself"),
            ("run db1 walship lag", "\"db1\": a colon follows the node's name"),
            ("run db1: psql", "\"psql\": only walship is run"),
            ("run db1: walship lag", "\"lag\": how it ends follows: -> EXIT \"text\""),
            ("run db1: walship lag -> ok", "\"ok\": no exit code"),
            (
                "run db1: walship lag -> 0 ok",
                "\"ok\": a text in quotes, or | and another outcome, is expected",
            ),
            ("eventually db1: role", "\"role\": a text in quotes is expected"),
            ("log db1: \"open", "\"log db1: \\\"open\": \" is not closed"),
            ("primary is db1|db9", "\"db1|db9\": no node; these are: db1 db2"),
            ("policy", "\"policy\": something follows"),
            ("clock db1 2", "\"2\": neither 2h nor -2h"),
            ("nodes db3", "\"nodes\": it comes once, first"),
            ("together:\n  db1: walship lag -> 0", "\"together:\": two runs follow, indented"),
        ];
        for (line, said) in wrongs {
            assert_eq!(act(line), Err(format!("a.scene:4: {said}")), "{line}");
        }
        let wrong = |text| parse("a.scene", text).unwrap_err().to_string();
        assert_eq!(wrong(""), "a.scene:1: \"\": a title comes first: what must hold, and why");
        assert_eq!(wrong("Title\nheal"), "a.scene:2: \"heal\": `nodes` comes first");
        assert_eq!(wrong("Title\nnodes db1 db1"), "a.scene:2: \"db1\": there is one of this name already");
    }
}
