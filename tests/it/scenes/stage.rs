//! Where a scene is played: nodes with real PostgreSQL, links between them, and what was written.

mod disks;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::Signal;
use walship::demo::{ClusterOptions, Ledger, StopMode, Workload, WorkloadOptions};
use walship::report::Role;

use super::links::Links;
use super::scene::{Act, Part, Run, Scene};
use crate::harness::{Disk, Finished, Node, PATIENCE, Test, eventually, ran_with_own_mounts};

/// How long a server may take to say whether it accepts writes; one that says nothing accepts none now.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// A node and what was done to it.
struct Actor {
    node: Node,
    is_frozen: bool,
}

/// Nodes are dropped before the test, whose folder they are in.
pub struct Stage {
    workload: Option<Workload>,
    /// Of the writers that have ended.
    ledgers: Vec<Ledger>,
    actors: Vec<Actor>,
    /// Whose are filled.
    disks: BTreeMap<String, Disk>,
    links: Links,
    primary: String,
    /// Rows with the numbers from 1 to this were committed.
    written: u64,
    /// The operator's copy of the CA's key, which may be lost with the first primary.
    ca_key: PathBuf,
    invited: u32,
    at: At,
    test: Test,
}

/// Where the scene is; the last thing that is said when it fails there, but for why.
struct At(String);

impl Drop for At {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the scene failed at {}", self.0);
        }
    }
}

/// Plays a scene to its end.
pub async fn play(file: &str, scene: &Scene) {
    let filled = scene.filled();
    if !filled.is_empty() && ran_with_own_mounts() {
        return;
    }
    let mut stage = Stage::new();
    filled.into_iter().for_each(|name| stage.mount(name));
    let begun = Instant::now();
    println!("{}", scene.title);
    for step in &scene.steps {
        stage.at = At(format!("{file}:{}: {}", step.line, step.text));
        println!("{:6.2} s  {}", begun.elapsed().as_secs_f64(), step.text);
        stage.act(&step.act).await;
    }
    println!("{:6.2} s  the end", begun.elapsed().as_secs_f64());
}

impl Stage {
    fn new() -> Stage {
        let test = Test::new();
        Stage {
            workload: None,
            ledgers: Vec::new(),
            actors: Vec::new(),
            disks: BTreeMap::new(),
            links: Links::default(),
            primary: String::new(),
            written: 0,
            ca_key: test.folder().join("ca.key"),
            invited: 0,
            at: At(String::new()),
            test,
        }
    }

    async fn act(&mut self, act: &Act) {
        match act {
            Act::Nodes(names) => self.nodes(names).await,
            Act::Upstream(node, upstream) => self.upstream(node, upstream).await,
            Act::Policy(text) => self.policy(text).await,
            Act::Write(rows) => self.write(*rows).await,
            Act::WritesStart => self.writes_start().await,
            Act::WritesStop => self.writes_stop().await,
            Act::Kept => self.kept().await.unwrap(),
            Act::Cut(one, other) => self.links.cut(one, other),
            Act::CutOneWay(from, to) => self.links.cut_one_way(from, to),
            Act::Heal => self.links.heal(),
            Act::Freeze(node, part) => self.freeze(node, *part),
            Act::Thaw(node) => self.thaw(node),
            Act::Stop(node, part) => self.stop(node, *part).await,
            Act::Kill(node, part) => self.kill(node, *part).await,
            Act::Start { node, part, failpoints } => self.start(node, *part, failpoints).await,
            Act::Ended(node) => drop(self.node_mut(node).sidecar.ended().await),
            Act::Run(run) => self.run(run).await,
            Act::Together(runs) => self.together(runs).await,
            Act::Sql { node, statement, value } => self.sql(node, statement, value.as_deref()).await,
            Act::Eventually(node, text) => self.eventually(node, text).await,
            Act::Log(node, text) => self.node(node).sidecar.expect_log(text),
            Act::PrimaryIs(names) => self.primary_is(names).await,
            Act::OnePrimary => self.one_primary().await.unwrap(),
            Act::Follows(node) => self.node(node).follows(self.primary()).await,
            Act::Down(node) => self.stopped(node, true).await,
            Act::Idle(node) => self.stopped(node, false).await,
            Act::Equal => self.equal().await,
            Act::Wipe(node) => self.wipe(node).await,
            Act::Join(node) => self.join(node).await,
            Act::Snapshot(node) => self.snapshot(node).await,
            Act::Restore(node) => self.restore(node).await,
            Act::Fill(node) => self.fill(node),
            Act::Room(node) => self.room(node),
            Act::Clock(node, seconds) => {
                self.node_mut(node).sidecar.set("WALSHIP_CLOCK_OFFSET_SECONDS", &seconds.to_string());
            }
        }
    }

    fn actor(&mut self, name: &str) -> &mut Actor {
        self.actors.iter_mut().find(|actor| actor.node.name() == name).unwrap()
    }

    fn node(&self, name: &str) -> &Node {
        &self.actors.iter().find(|actor| actor.node.name() == name).unwrap().node
    }

    fn node_mut(&mut self, name: &str) -> &mut Node {
        &mut self.actor(name).node
    }

    fn primary(&self) -> &Node {
        self.node(&self.primary)
    }

    /// Those who can be asked.
    fn running(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        for Actor { node, is_frozen } in &mut self.actors {
            if !*is_frozen && node.sidecar.is_running() && node.cluster.is_running() {
                names.push(node.name().to_owned());
            }
        }
        names
    }

    async fn nodes(&mut self, names: &[String]) {
        self.primary.clone_from(&names[0]);
        for (at, name) in names.iter().enumerate() {
            let mut node = match at {
                0 => Node::new(&self.test, name, ClusterOptions::default()).await,
                _ => Node::empty(&self.test, name),
            };
            node.advertise = self.links.place(name, node.listen()).await;
            self.actors.push(Actor { node, is_frozen: false });
        }
        self.primary().init().await;
        std::fs::copy(self.primary().store().join("tls/ca.key"), &self.ca_key).unwrap();
        self.test.account.own(&self.ca_key).unwrap();
        self.dials(&names[0], &["primary"]);
        self.primary().captures().await;
        self.primary().cluster.sql("CREATE TABLE scene (number bigint PRIMARY KEY)").await.unwrap();
        for name in &names[1..] {
            self.joins(name).await;
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for name in &names[1..] {
            self.node(name).follows(self.primary()).await;
            self.node(name).knows(&names).await;
        }
    }

    /// Starts a sidecar; the links know it from now on.
    fn dials(&mut self, name: &str, arguments: &[&str]) {
        let sidecar = &mut self.node_mut(name).sidecar;
        sidecar.start(arguments);
        let process = sidecar.pid();
        self.links.is(name, process);
    }

    async fn joins(&mut self, name: &str) {
        self.invited += 1;
        let bundle = self.test.folder().join(format!("{name}-{}.join", self.invited));
        let (ca_key, address) = (self.ca_key.to_str().unwrap(), self.primary().advertise.to_string());
        let output = bundle.to_str().unwrap();
        let invite = ["invite", name, "--ca-key", ca_key, "-o", output, "--address", &address];
        self.primary().walship(&invite).await.succeeded();
        let arguments = self.node(name).join_arguments(&bundle);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.dials(name, &arguments);
    }

    async fn runs(&mut self, name: &str) {
        self.dials(name, &["run"]);
        let node = self.node(name);
        eventually(&format!("{name} answers"), async || node.status().await.map(drop)).await;
    }

    async fn upstream(&mut self, name: &str, upstream: &str) {
        let address = self.node(upstream).advertise.to_string();
        let sidecar = &mut self.node_mut(name).sidecar;
        sidecar.set("WALSHIP_UPSTREAM", &address);
        sidecar.terminate().await;
        self.runs(name).await;
        let node = self.node(name);
        eventually(&format!("{name} follows {upstream}"), async || {
            let followed = node.status().await?.upstream.context("it is no standby")?;
            ensure!(followed.from_primary && followed.route.get(1).is_some_and(|next| next == upstream));
            Ok(())
        })
        .await;
    }

    async fn policy(&mut self, text: &str) {
        let primary = self.primary();
        eventually("the policy is taken", async || primary.walship(&["sync", text]).await.exits(0)).await;
        for name in self.running() {
            let node = self.node(&name);
            eventually(&format!("{name} knows the policy"), async || {
                let policy = node.status().await?.commits.and_then(|commits| commits.policy);
                ensure!(policy.as_ref().is_some_and(|policy| policy.text == text), "{policy:?}");
                Ok(())
            })
            .await;
        }
    }

    async fn write(&mut self, rows: u64) {
        let (from, to) = (self.written + 1, self.written + rows);
        let insert = format!("INSERT INTO scene SELECT generate_series({from}, {to})");
        let written = tokio::time::timeout(PATIENCE, self.primary().cluster.sql(&insert)).await;
        written.unwrap_or_else(|_| panic!("the commit was not acknowledged in {PATIENCE:?}")).unwrap();
        self.written = to;
    }

    async fn writes_start(&mut self) {
        assert!(self.workload.is_none(), "they write already");
        let options = WorkloadOptions {
            clients: 2,
            pause: Duration::from_millis(5),
            seed: self.test.seed(),
            ..WorkloadOptions::default()
        };
        self.workload = Some(Workload::start(&self.primary().cluster.conninfo(), &options).await.unwrap());
        self.writes_go_on().await;
    }

    async fn writes_go_on(&self) {
        let Some(workload) = &self.workload else { return };
        let before = workload.acknowledged();
        eventually("the clients' commits are acknowledged", async || {
            let more = workload.acknowledged() - before;
            ensure!(more >= 20, "{more}");
            Ok(())
        })
        .await;
    }

    async fn writes_stop(&mut self) {
        let workload = self.workload.take().expect("nobody writes");
        self.ledgers.push(workload.stop().await);
    }

    async fn kept(&self) -> anyhow::Result<()> {
        let (primary, written) = (&self.primary().cluster, self.written);
        let count = format!("SELECT count(*) FROM scene WHERE number <= {written}");
        let found = primary.value(&count).await?;
        ensure!(found == written.to_string(), "{found} of {written} rows are there");
        for ledger in self.ledgers.iter().chain(&self.workload.as_ref().map(Workload::ledger)) {
            ledger.verify(&primary.conninfo(), None).await?;
        }
        Ok(())
    }

    fn freeze(&mut self, name: &str, part: Part) {
        let actor = self.actor(name);
        if part != Part::Postgres {
            actor.node.sidecar.signal(Signal::STOP);
        }
        if part != Part::Sidecar {
            actor.node.cluster.freeze();
        }
        actor.is_frozen = true;
    }

    fn thaw(&mut self, name: &str) {
        let actor = self.actor(name);
        assert!(actor.is_frozen, "{name} is not frozen");
        if actor.node.sidecar.is_running() {
            actor.node.sidecar.signal(Signal::CONT);
        }
        actor.node.cluster.thaw();
        actor.is_frozen = false;
    }

    async fn stop(&mut self, name: &str, part: Part) {
        let node = self.node_mut(name);
        if part != Part::Sidecar {
            node.cluster.stop(StopMode::Fast).await.unwrap();
        }
        if part != Part::Postgres {
            assert!(node.sidecar.terminate().await.success());
        }
    }

    async fn kill(&mut self, name: &str, part: Part) {
        let actor = self.actor(name);
        if part != Part::Postgres && (part == Part::Sidecar || actor.node.sidecar.is_running()) {
            actor.node.sidecar.kill().await;
        }
        if part != Part::Sidecar {
            actor.node.cluster.kill().await.unwrap();
        }
        actor.is_frozen &= part != Part::Both;
    }

    async fn start(&mut self, name: &str, part: Part, failpoints: &str) {
        let node = self.node_mut(name);
        node.sidecar.set("WALSHIP_FAILPOINTS", failpoints);
        // A standby's sidecar starts its PostgreSQL, which takes its WAL from it.
        let is_standby = node.cluster.data_directory().join("standby.signal").exists();
        if part == Part::Postgres || (part == Part::Both && !is_standby) {
            node.cluster.start().await.unwrap();
        }
        if part != Part::Postgres {
            self.runs(name).await;
        }
        // An old primary's may be stopped again by now.
        if part == Part::Both && is_standby {
            let cluster = &self.node(name).cluster;
            eventually(&format!("PostgreSQL on {name} is up"), async || cluster.sql("SELECT 1").await).await;
        }
    }

    async fn run(&self, run: &Run) {
        judge(run, self.finish(run).await);
    }

    async fn together(&self, runs: &[Run; 2]) {
        let [one, other] = runs;
        let (first, second) = tokio::join!(self.finish(one), self.finish(other));
        judge(one, first);
        judge(other, second);
    }

    async fn finish(&self, run: &Run) -> Finished {
        let arguments: Vec<&str> = run.arguments.iter().map(String::as_str).collect();
        self.node(&run.node).walship(&arguments).await
    }

    async fn sql(&self, name: &str, statement: &str, value: Option<&str>) {
        let rows = self.node(name).cluster.sql(statement).await.unwrap();
        if let Some(value) = value {
            assert_eq!(rows.join(" "), value, "on {name}");
        }
    }

    async fn eventually(&self, name: &str, text: &str) {
        let node = self.node(name);
        eventually(&format!("the status of {name} says {text:?}"), async || {
            let said = node.walship(&["status"]).await.said();
            ensure!(said.contains(text), "{said}");
            Ok(())
        })
        .await;
    }

    async fn primary_is(&mut self, names: &[String]) {
        let found = eventually(&format!("one of {names:?} is the primary"), async || {
            let mut found = Vec::new();
            for name in names {
                let node = self.node(name);
                let by_status = node.status().await?.node.role == Role::Primary;
                let by_sql = node.cluster.value("SELECT NOT pg_is_in_recovery()").await? == "t";
                ensure!(by_status == by_sql, "{name}: by its status {by_status}, by SQL {by_sql}");
                found.extend(by_sql.then_some(name));
            }
            ensure!(found.len() == 1, "{found:?}");
            Ok(found[0].clone())
        })
        .await;
        self.primary = found;
        if let Some(workload) = &self.workload {
            workload.redirect(&self.primary().cluster.conninfo());
        }
        self.writes_go_on().await;
    }

    async fn one_primary(&self) -> anyhow::Result<()> {
        let mut writing = Vec::new();
        for Actor { node, .. } in &self.actors {
            let asked = node.cluster.value("SELECT NOT pg_is_in_recovery()");
            let writes = tokio::time::timeout(ANSWERS_WITHIN, asked).await;
            if writes.is_ok_and(|writes| writes.is_ok_and(|writes| writes == "t")) {
                writing.push(node.name());
            }
        }
        ensure!(writing.len() <= 1, "{writing:?} accept writes");
        Ok(())
    }

    /// PostgreSQL does not run; as what it would come back its `standby.signal` says.
    async fn stopped(&self, name: &str, as_standby: bool) {
        let cluster = &self.node(name).cluster;
        eventually(&format!("PostgreSQL on {name} is stopped"), async || {
            ensure!(!cluster.is_running(), "it runs");
            let signal = cluster.data_directory().join("standby.signal");
            ensure!(signal.exists() == as_standby, "it would not come back as what it was");
            Ok(())
        })
        .await;
    }

    async fn equal(&mut self) {
        let mut others = self.running();
        others.retain(|name| *name != self.primary);
        assert!(!others.is_empty(), "nobody runs but {}", self.primary);
        for name in others {
            assert!(self.node(&name).equals(self.primary()).await >= self.written);
        }
    }

    async fn join(&mut self, name: &str) {
        self.node_mut(name).sidecar.set("WALSHIP_FAILPOINTS", "");
        self.joins(name).await;
        self.node(name).follows(self.primary()).await;
    }
}

/// Checks that a command ended in one of the ways it may.
fn judge(run: &Run, finished: Finished) {
    let is_it = |code: i32, texts: &[String]| {
        finished.code() == Some(code) && texts.iter().all(|text| finished.said().contains(text))
    };
    let found = run.outcomes.iter().any(|outcome| is_it(outcome.code, &outcome.texts));
    assert!(found, "{:?}, and none of {:?}{}", finished.code(), run.outcomes, finished.framed());
    println!("{}", finished.said().trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenes::parse::parse;

    #[tokio::test]
    async fn a_lost_row_and_a_second_primary_are_noticed() {
        let text = "Title\nnodes db1 db2\nwrite 10\nwrites start\nfollows db2\nlog db2: \"\"\nlog db1: \"\"";
        let mut stage = Stage::new();
        for step in parse("a.scene", text).unwrap().steps {
            stage.act(&step.act).await;
        }
        stage.kept().await.unwrap();
        stage.one_primary().await.unwrap();
        stage.writes_stop().await;
        let said = async |stage: &Stage| stage.kept().await.unwrap_err().to_string();
        let primary = stage.primary();
        primary.cluster.sql("DELETE FROM walship_ledger WHERE client = 0").await.unwrap();
        assert!(said(&stage).await.contains("acknowledged rows are missing"));
        primary.cluster.sql("DELETE FROM scene WHERE number = 7").await.unwrap();
        assert_eq!(said(&stage).await, "9 of 10 rows are there");
        stage.node("db2").cluster.promote().await.unwrap();
        let said = stage.one_primary().await.unwrap_err().to_string();
        assert_eq!(said, "[\"db1\", \"db2\"] accept writes");
    }
}
