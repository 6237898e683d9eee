//! What the story tells while it goes on. Nothing is printed here: whoever runs the story shows it.

/// One thing that is told.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// A new part of the story begins.
    Part(&'a str),
    /// A line of the story.
    Line(&'a str),
    /// A command as a user would type it in a node's folder.
    Command {
        /// The node.
        node: &'a str,
        /// What is typed.
        line: &'a str,
    },
    /// A line that a command printed.
    Output(&'a str),
    /// How far a base backup is; told many times a second.
    Progress {
        /// What is done at the moment, in words.
        phase: &'a str,
        /// Bytes that are done.
        done_bytes: u64,
        /// Bytes in all; zero when not yet known.
        total_bytes: u64,
    },
}

/// Tells.
pub struct Teller<'a>(&'a mut dyn FnMut(Told<'_>));

impl<'a> Teller<'a> {
    /// Tells it to `listener`.
    pub fn new(listener: &'a mut dyn FnMut(Told<'_>)) -> Teller<'a> {
        Teller(listener)
    }

    /// Tells one thing.
    pub fn tell(&mut self, told: Told<'_>) {
        (self.0)(told);
    }

    /// Tells that a new part begins.
    pub fn part(&mut self, title: &str) {
        self.tell(Told::Part(title));
    }

    /// Tells a line.
    pub fn line(&mut self, line: impl AsRef<str>) {
        self.tell(Told::Line(line.as_ref()));
    }

    /// Tells of a command of a node.
    pub fn command(&mut self, node: &str, arguments: &[&str]) {
        let line = format!("walship {}", arguments.join(" "));
        self.tell(Told::Command { node, line: &line });
    }

    /// Tells what a command printed.
    pub fn output(&mut self, text: &str) {
        for line in text.lines() {
            self.tell(Told::Output(line));
        }
    }
}
