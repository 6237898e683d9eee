//! What a scene is: a title, and steps of these kinds.

use std::collections::BTreeSet;

/// What must hold and why, and the steps that show it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scene {
    pub title: String,
    pub steps: Vec<Step>,
}

impl Scene {
    /// Whose disk is filled.
    pub fn filled(&self) -> BTreeSet<&str> {
        let filled = self.steps.iter().filter_map(|step| match &step.act {
            Act::Fill(node) => Some(node.as_str()),
            _ => None,
        });
        filled.collect()
    }
}

/// One line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Its number, from 1.
    pub line: usize,
    /// As it is written.
    pub text: String,
    pub act: Act,
}

/// What is done or looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    /// `nodes db1 db2 db3`: the first is the primary, the others have joined it.
    Nodes(Vec<String>),
    /// `upstream db4 db2`: the first follows the second from now on.
    Upstream(String, String),
    /// `policy any 1 (*)`: what commits wait for.
    Policy(String),
    /// `write 100`: so many rows are committed at the primary, and remembered.
    Write(u64),
    /// `writes start`: clients write, and note what was acknowledged to them.
    WritesStart,
    /// `writes stop`: they end.
    WritesStop,
    /// `kept`: all that was remembered and noted is on the primary.
    Kept,
    /// `cut db1 db2`: neither reaches the other.
    Cut(String, String),
    /// `cut db1 > db2`: what the first says does not reach the second.
    CutOneWay(String, String),
    /// `heal`: every link is whole.
    Heal,
    /// `freeze db1 sidecar`: its processes are stopped as they are.
    Freeze(String, Part),
    /// `thaw db1`: and go on.
    Thaw(String),
    /// `stop db1 postgres`: in order.
    Stop(String, Part),
    /// `kill db1`: with SIGKILL.
    Kill(String, Part),
    /// `start db1`, as its host does when it boots; `start db1 sidecar with POINT=ACTION` sets failure points.
    Start { node: String, part: Part, failpoints: String },
    /// `ended db1`: its sidecar ends by itself.
    Ended(String),
    /// `run db2: walship promote -> 3 "text"`.
    Run(Run),
    /// `together:` and two runs below it, indented: both at once.
    Together(Box<[Run; 2]>),
    /// `sql db1: SELECT 1 -> 1`.
    Sql { node: String, statement: String, value: Option<String> },
    /// `eventually db1: "text"`: what `walship status` says there.
    Eventually(String, String),
    /// `log db1: "text"`: a warning or an error that may be there.
    Log(String, String),
    /// `primary is db2`: by its status and by SQL; `db2|db3` is exactly one of them. It is the one that is written to.
    PrimaryIs(Vec<String>),
    /// `one primary`: no two accept writes.
    OnePrimary,
    /// `follows db3`: it shows all that the primary has written so far.
    Follows(String),
    /// `down db1`: its PostgreSQL is stopped, and would come back as a standby.
    Down(String),
    /// `idle db1`: its PostgreSQL is stopped, and would come back as the primary.
    Idle(String),
    /// `equal`: all that run have the primary's rows.
    Equal,
    /// `wipe db1`: it is killed, and all that it had is gone.
    Wipe(String),
    /// `join db1`: it joins the primary anew.
    Join(String),
    /// `snapshot db1`: of its disk, while it runs.
    Snapshot(String),
    /// `restore db1`: it is killed, and its disk is as it was at the snapshot.
    Restore(String),
    /// `fill db1`: the disk of its store, which is a small one for that, has no room any more.
    Fill(String),
    /// `room db1`: it has again.
    Room(String),
    /// `clock db1 -2h`: its sidecar's clock goes wrong by so much, from its next start on.
    Clock(String, i64),
}

/// Which of a node's two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    Both,
    Postgres,
    Sidecar,
}

/// A command and how it may end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    pub node: String,
    /// Without `walship` itself.
    pub arguments: Vec<String>,
    /// `-> 0 "text" | 3 "text"`: one of these.
    pub outcomes: Vec<Outcome>,
}

/// One way to end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub code: i32,
    /// All of these are said.
    pub texts: Vec<String>,
}
