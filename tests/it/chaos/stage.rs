//! Where it happens: nodes with real PostgreSQL, links between them, and the commands that an operator has running.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, WaitOptions};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use walship::demo::ClusterOptions;
use walship::report::{Status, json};

use super::clients::TABLE;
use super::draw::Event;
use super::world::{Life, Seen, World};
use crate::harness::{Finished, Node, Test, eventually};
use crate::scenes::{Links, Part};

/// How long a status may take; who says nothing in that time is taken to say nothing.
const STATUS_WITHIN: Duration = Duration::from_secs(3);

/// No command may take longer, whatever happens meanwhile.
const COMMAND_WITHIN: Duration = Duration::from_secs(240);

/// How commands may end: done, failed, refused, and of unknown outcome.
const ENDINGS: [i32; 4] = [0, 1, 3, 4];

/// Switches a node off, its commands included. It goes by working folders: all of a node's processes are in one of two.
const FENCE: &str = r#"
node=$(dirname "$0")/$WALSHIP_FENCE_NODE
while :; do
    all=$(find /proc/[0-9]*/cwd -maxdepth 0 \( -lname "$node" -o -lname "$node/data" \) 2>/dev/null)
    [ -n "$all" ] || exit 0
    for cwd in $all; do pid=${cwd%/cwd}; kill -9 "${pid#/proc/}"; done
    sleep 0.05
done
"#;

/// A node and what was done to it.
pub struct Actor {
    pub node: Node,
    sidecar: Life,
    is_postgres_frozen: bool,
}

impl Actor {
    /// Takes the exit status of a postmaster that a fence killed: until then it looks alive to the next one.
    fn bury(&self) {
        let cluster = &self.node.cluster;
        let (data, socket) = (cluster.data_directory(), cluster.socket_folder());
        for file in [data.join("postmaster.pid"), socket.join(format!(".s.PGSQL.{}.lock", cluster.port()))] {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let pid = text.lines().next().and_then(|line| line.parse().ok()).and_then(Pid::from_raw);
            // One that lives is left alone, and so is one that is no child.
            let _ = pid.map(|pid| rustix::process::waitpid(Some(pid), WaitOptions::NOHANG));
        }
    }
}

/// A command that has not ended.
struct Running {
    what: String,
    may_fence: bool,
    task: JoinHandle<Finished>,
}

/// Nodes are dropped before the test, whose folder they are in.
pub struct Stage {
    pub actors: Vec<Actor>,
    /// What each said of itself when it was last looked at.
    pub statuses: Vec<Option<Status>>,
    links: Links,
    is_cut: bool,
    commands: Vec<Running>,
    begun: Instant,
    test: Test,
}

impl Stage {
    /// A primary and standbys that follow it, under a policy.
    pub async fn new(test: Test, names: &[&str], keys: &[&[&str]], policy: &str, begun: Instant) -> Stage {
        let mut stage = Stage {
            actors: Vec::new(),
            statuses: vec![None; names.len()],
            links: Links::default(),
            is_cut: false,
            commands: Vec::new(),
            begun,
            test,
        };
        std::fs::write(stage.test.folder().join("fence.sh"), FENCE).unwrap();
        for (at, (name, keys)) in names.iter().zip(keys).enumerate() {
            stage.join(at, name).await;
            stage.configure(at, keys).await;
        }
        let primary = &stage.actors[0].node;
        for Actor { node, .. } in &stage.actors[1..] {
            node.follows(primary).await;
            node.knows(names).await;
        }
        eventually("the policy is taken", async || primary.walship(&["sync", policy]).await.exits(0)).await;
        primary.cluster.sql(TABLE).await.unwrap();
        stage
    }

    async fn join(&mut self, at: usize, name: &str) {
        let options = ClusterOptions::default().set("shared_buffers", "8MB").set("wal_log_hints", "on");
        let mut node = match at {
            0 => Node::new(&self.test, name, options).await,
            _ => Node::empty(&self.test, name),
        };
        node.advertise = self.links.place(name, node.listen()).await;
        for text in [" WARN ", "ERROR "] {
            node.sidecar.expect_log(text);
        }
        self.actors.push(Actor { node, sidecar: Life::Down, is_postgres_frozen: false });
        let (primary, own) = (&self.actors[0].node, &self.actors[at].node);
        if at == 0 {
            own.init().await;
            self.dial(at, &["primary"]);
            self.actors[at].node.captures().await;
            return;
        }
        let arguments = own.join_arguments(&primary.invite(name).await);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.dial(at, &arguments);
        self.actors[at].node.follows(&self.actors[0].node).await;
    }

    /// Turns keys of its configuration on.
    async fn configure(&mut self, at: usize, keys: &[&str]) {
        let node = &mut self.actors[at].node;
        let mut config = std::fs::read_to_string(node.config_file()).unwrap();
        for key in keys {
            let off = format!("# {key} = false");
            assert!(config.contains(&off), "{config}");
            config = config.replace(&off, &format!("{key} = true"));
        }
        std::fs::write(node.config_file(), config).unwrap();
        assert!(node.sidecar.terminate().await.success());
        self.dial(at, &["run"]);
        let node = &self.actors[at].node;
        eventually("the sidecar answers", async || node.status().await.map(drop)).await;
    }

    /// Starts a sidecar; the links know it from now on.
    fn dial(&mut self, at: usize, arguments: &[&str]) {
        let actor = &mut self.actors[at];
        actor.node.sidecar.start(arguments);
        actor.sidecar = Life::Runs;
        self.links.is(actor.node.name(), actor.node.sidecar.pid());
    }

    /// Says something, with the time.
    pub fn say(&self, what: &str) {
        println!("{:7.2} s  {what}", self.begun.elapsed().as_secs_f64());
    }

    pub fn name(&self, at: usize) -> &str {
        self.actors[at].node.name()
    }

    pub fn node(&self, at: usize) -> &Node {
        &self.actors[at].node
    }

    /// Looks at everything. An error is a sidecar or a command that ended as none may.
    pub async fn look(&mut self) -> anyhow::Result<World> {
        self.end_commands().await?;
        self.notice_ended().await?;
        self.actors.iter().for_each(Actor::bury);
        self.statuses = self.ask().await;
        let mut nodes = Vec::new();
        for (actor, status) in self.actors.iter().zip(&self.statuses) {
            let postgres = match actor.node.cluster.is_running() {
                true if actor.is_postgres_frozen => Life::Frozen,
                true => Life::Runs,
                false => Life::Down,
            };
            let role = status.as_ref().map(|status| status.node.role);
            nodes.push(Seen { sidecar: actor.sidecar, postgres, role });
        }
        let may_fence = self.commands.iter().any(|command| command.may_fence);
        Ok(World { nodes, is_cut: self.is_cut, commands: self.commands.len(), may_fence })
    }

    /// Those who can answer, all at once.
    async fn ask(&self) -> Vec<Option<Status>> {
        let mut asked = JoinSet::new();
        for (at, actor) in self.actors.iter().enumerate().filter(|(_, actor)| actor.sidecar == Life::Runs) {
            let status = Finished::run(actor.node.command(&["status", "--format", "json"]));
            asked.spawn(async move { (at, timeout(STATUS_WITHIN, status).await) });
        }
        let mut statuses = vec![None; self.actors.len()];
        for (at, answer) in asked.join_all().await {
            let answer = answer.ok().and_then(|finished| finished.exits(0).ok());
            statuses[at] = answer.and_then(|finished| json::decode(finished.stdout.as_bytes()).ok());
        }
        statuses
    }

    /// A sidecar that was killed has been switched off by a fence; no other ends by itself.
    async fn notice_ended(&mut self) -> anyhow::Result<()> {
        for at in 0..self.actors.len() {
            let actor = &mut self.actors[at];
            if actor.sidecar == Life::Down || actor.node.sidecar.is_running() {
                continue;
            }
            let status = actor.node.sidecar.ended().await;
            ensure!(
                status.signal() == Some(Signal::KILL.as_raw()),
                "the sidecar of {} ended by itself: {status}",
                self.name(at)
            );
            (actor.sidecar, actor.is_postgres_frozen) = (Life::Down, false);
            actor.bury();
            self.say(&format!("{} was switched off", self.name(at)));
        }
        Ok(())
    }

    /// Takes note of commands that have ended.
    async fn end_commands(&mut self) -> anyhow::Result<()> {
        let (ended, running) = self.commands.drain(..).partition(|command| command.task.is_finished());
        self.commands = running;
        let ended: Vec<Running> = ended;
        for Running { what, task, .. } in ended {
            let Ok(finished) = task.await else { bail!("{what} did not end in {COMMAND_WITHIN:?}") };
            let last = finished.said().trim_end().replace('\n', "\n               ");
            match finished.code() {
                Some(code) if ENDINGS.contains(&code) => {
                    self.say(&format!("{what} has ended with {code}:\n               {last}"));
                }
                // Whoever switches a node off ends what is run there.
                None => self.say(&format!("{what} was ended by a signal")),
                Some(code) => bail!("{what} ended with {code}{}", finished.framed()),
            }
        }
        Ok(())
    }

    /// The commands that have not ended.
    pub fn running(&self) -> Vec<&str> {
        self.commands.iter().map(|command| command.what.as_str()).collect()
    }

    /// Lets it happen.
    pub async fn carry_out(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Kill(at, part) => self.kill(at, part).await?,
            Event::Freeze(at, part) => self.freeze(at, part),
            Event::Thaw(at) => self.thaw(at),
            Event::Stop(at) => self.stop(at).await?,
            Event::Start(at) => self.start(at).await?,
            Event::Cut(one, other) => self.cut(one, other),
            Event::CutOneWay(from, to) => {
                self.is_cut = true;
                self.say(&format!("what {} says does not reach {} any more", self.name(from), self.name(to)));
                self.links.cut_one_way(self.name(from), self.name(to));
            }
            Event::Isolate(at) => {
                (0..self.actors.len()).filter(|other| *other != at).for_each(|other| self.cut(at, other));
            }
            Event::Heal => self.heal(),
            Event::Promote(at) => self.run(at, &["promote"]),
            Event::PromoteFenced(at) => {
                let fence = format!("sh {}", self.test.folder().join("fence.sh").display());
                self.run(at, &["promote", "--fence-command", &fence]);
            }
            Event::PromoteElect(at) => self.run(at, &["promote", "--elect"]),
            Event::Switchover(at, None) => self.run(at, &["switchover"]),
            Event::Switchover(at, Some(to)) => {
                let to = self.name(to).to_owned();
                self.run(at, &["switchover", "--to", &to]);
            }
            Event::Rejoin(at) => self.run(at, &["rejoin"]),
        }
        Ok(())
    }

    async fn kill(&mut self, at: usize, part: Part) -> anyhow::Result<()> {
        self.say(&format!("kill {part:?} of {}", self.name(at)));
        let actor = &mut self.actors[at];
        if part != Part::Postgres && actor.sidecar != Life::Down {
            actor.node.sidecar.kill().await;
            actor.sidecar = Life::Down;
        }
        if part != Part::Sidecar {
            actor.node.cluster.kill().await?;
            actor.is_postgres_frozen = false;
        }
        Ok(())
    }

    fn freeze(&mut self, at: usize, part: Part) {
        self.say(&format!("freeze {part:?} of {}", self.name(at)));
        let actor = &mut self.actors[at];
        if part != Part::Postgres && actor.sidecar == Life::Runs {
            actor.node.sidecar.signal(Signal::STOP);
            actor.sidecar = Life::Frozen;
        }
        if part != Part::Sidecar {
            actor.node.cluster.freeze();
            actor.is_postgres_frozen = true;
        }
    }

    /// What was frozen of it goes on.
    pub fn thaw(&mut self, at: usize) {
        self.say(&format!("thaw {}", self.name(at)));
        let actor = &mut self.actors[at];
        if actor.sidecar == Life::Frozen {
            actor.node.sidecar.signal(Signal::CONT);
            actor.sidecar = Life::Runs;
        }
        actor.node.cluster.thaw();
        actor.is_postgres_frozen = false;
    }

    /// What is down of it is started, as its host does when it boots; PostgreSQL where there is one.
    pub async fn start(&mut self, at: usize) -> anyhow::Result<()> {
        if self.actors[at].sidecar == Life::Down {
            self.say(&format!("start Sidecar of {}", self.name(at)));
            self.dial(at, &["run"]);
        }
        self.actors[at].bury();
        let cluster = &self.actors[at].node.cluster;
        let data = cluster.data_directory();
        let is_seeding = self.statuses[at].as_ref().is_some_and(|status| status.seeding.is_some());
        if cluster.is_running() || is_seeding || !data.join("global/pg_control").exists() {
            return Ok(());
        }
        self.say(&format!("start Postgres of {}", self.name(at)));
        let log = cluster.log_file().display().to_string();
        self.pg_ctl(at, &["start", "--no-wait", "-l", &log]).await;
        Ok(())
    }

    /// Stops both in order. PostgreSQL may wait for its sidecar, which waits for nobody.
    async fn stop(&mut self, at: usize) -> anyhow::Result<()> {
        self.say(&format!("stop {}", self.name(at)));
        self.pg_ctl(at, &["stop", "--no-wait", "--mode", "fast"]).await;
        let actor = &mut self.actors[at];
        let status = actor.node.sidecar.terminate().await;
        actor.sidecar = Life::Down;
        // A fence may be quicker; and one that has just begun does not listen to signals yet.
        let may_end_by = [Signal::KILL, Signal::TERM].map(Signal::as_raw);
        let is_fine = status.success() || status.signal().is_some_and(|signal| may_end_by.contains(&signal));
        ensure!(is_fine, "the sidecar of {} was told to end, and did with {status}", self.name(at));
        Ok(())
    }

    /// Runs pg_ctl, whatever becomes of it: somebody else may have been quicker.
    async fn pg_ctl(&self, at: usize, arguments: &[&str]) {
        let cluster = &self.actors[at].node.cluster;
        let mut pg_ctl = cluster.account().command(cluster.binaries().program("pg_ctl"));
        pg_ctl.args(arguments).arg("--silent").arg("-D").arg(cluster.data_directory());
        // A fence finds it there.
        pg_ctl.current_dir(self.actors[at].node.folder());
        Finished::run(pg_ctl).await;
    }

    fn cut(&mut self, one: usize, other: usize) {
        self.is_cut = true;
        self.say(&format!("cut {} from {}", self.name(one), self.name(other)));
        self.links.cut(self.name(one), self.name(other));
    }

    pub fn heal(&mut self) {
        self.say("heal all links");
        self.is_cut = false;
        self.links.heal();
    }

    /// Runs a command, and does not wait for its end.
    pub fn run(&mut self, at: usize, arguments: &[&str]) {
        let words: Vec<&str> = arguments.iter().copied().filter(|word| !word.starts_with("sh ")).collect();
        let what = format!("{}: walship {}", self.name(at), words.join(" "));
        self.say(&what);
        let may_fence = arguments.contains(&"--fence-command");
        let command = self.actors[at].node.command(arguments);
        let task = tokio::spawn(Finished::run_within(COMMAND_WITHIN, command));
        self.commands.push(Running { what, may_fence, task });
    }

    /// Where a node's commits end, and whether another one shows that.
    pub async fn shows(&self, at: usize, written: &str) -> anyhow::Result<()> {
        let replayed = format!("SELECT pg_is_in_recovery() AND pg_last_wal_replay_lsn() >= '{written}'");
        let asked = timeout(STATUS_WITHIN, self.node(at).cluster.value(&replayed)).await;
        let shown = asked.context("it does not answer").flatten();
        let shown = shown.with_context(|| format!("ask {}", self.name(at)))?;
        ensure!(shown == "t", "{} has not replayed {written}", self.name(at));
        Ok(())
    }
}
