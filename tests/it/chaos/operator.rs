//! What a person does when the worst is over: starts what is down, and does what `walship status` says. Then all has to
//! be well within a bounded time.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::time::{sleep, timeout};
use walship::demo::digest;
use walship::report::{Role, Status, warnings};

use super::clients::Clients;
use super::stage::Stage;
use super::witness::Witness;
use super::world::{Life, World};

/// All is well within this time once everything runs again.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Commits are acknowledged again so soon, and so many of them.
const WRITTEN_WITHIN: Duration = Duration::from_secs(30);
const WRITTEN: usize = 10;

impl Stage {
    /// Mends everything, and waits until one node is the primary and all others follow it; which.
    pub async fn settle(&mut self) -> anyhow::Result<usize> {
        let begun = Instant::now();
        self.heal();
        for at in 0..self.actors.len() {
            self.thaw(at);
            self.start(at).await?;
        }
        loop {
            let world = self.look().await?;
            let unsettled = match self.settled(&world).await {
                Ok(primary) => {
                    let seconds = begun.elapsed().as_secs_f64();
                    self.say(&format!("settled after {seconds:.1} s: {} is the primary", self.name(primary)));
                    return Ok(primary);
                }
                Err(error) => error,
            };
            if begun.elapsed() > SETTLED_WITHIN {
                let statuses: Vec<String> =
                    self.statuses.iter().map(|status| format!("{status:?}")).collect();
                bail!("not settled after {SETTLED_WITHIN:?}: {unsettled:#}\n{}", statuses.join("\n"));
            }
            self.operate(&world).await?;
            sleep(LOOK_EVERY).await;
        }
    }

    async fn settled(&self, world: &World) -> anyhow::Result<usize> {
        ensure!(world.commands == 0, "{:?} goes on", self.running());
        let primaries: Vec<usize> = (0..world.nodes.len()).filter(|at| world.nodes[*at].leads()).collect();
        let &[primary] = &primaries[..] else { bail!("{primaries:?} are primaries") };
        let cluster = &self.node(primary).cluster;
        let written = timeout(LOOK_EVERY * 4, cluster.value("SELECT pg_current_wal_flush_lsn()")).await;
        let written = written.context("the primary's PostgreSQL does not answer").flatten()?;
        for at in (0..world.nodes.len()).filter(|at| *at != primary) {
            let role = world.nodes[at].role;
            ensure!(role == Some(Role::Standby), "{} is {role:?}", self.name(at));
            self.shows(at, &written).await?;
        }
        Ok(primary)
    }

    /// Starts what is down, and runs what is called for, one command at a time.
    async fn operate(&mut self, world: &World) -> anyhow::Result<()> {
        for (at, node) in world.nodes.iter().enumerate() {
            let is_down = node.postgres == Life::Down && node.role != Some(Role::Superseded);
            if (is_down || node.sidecar == Life::Down) && !world.may_fence {
                self.start(at).await?;
            }
        }
        if world.commands > 0 {
            return Ok(());
        }
        let is = |role| move |at: &usize| world.nodes[*at].role == Some(role);
        let all = || 0..world.nodes.len();
        if let Some(at) = all().find(is(Role::Superseded)) {
            self.run(at, &["rejoin"]);
        } else if let Some(at) = all().find(|at| wants_seed(self.statuses[*at].as_ref())) {
            self.run(at, &["standby", "--reseed"]);
        } else if all().find(is(Role::Primary)).is_none()
            && all().all(|at| world.nodes[at].role.is_some())
            && let Some(at) = all().find(is(Role::Standby))
        {
            self.run(at, &["promote", "--elect"]);
        }
        Ok(())
    }

    /// Checks that nobody writes now, all nodes have the same rows, and all that was acknowledged is among them.
    pub async fn verify(
        &mut self,
        primary: usize,
        clients: &Clients,
        witness: &Witness,
    ) -> anyhow::Result<()> {
        witness.judge()?;
        clients.pause().await;
        let primary = self.node(primary);
        let written = primary.cluster.value("SELECT pg_current_wal_flush_lsn()").await?;
        for (at, actor) in self.actors.iter().enumerate() {
            if actor.node.name() == primary.name() {
                continue;
            }
            let what = format!("{} shows all that was written", actor.node.name());
            walship::demo::wait::until(&what, WRITTEN_WITHIN, async || self.shows(at, &written).await)
                .await?;
            digest::compare(&primary.cluster.conninfo(), &actor.node.cluster.conninfo())
                .await
                .with_context(|| format!("compare {} with {}", actor.node.name(), primary.name()))?;
        }
        witness.find_all_on(&primary.cluster).await?;
        clients.go_on();
        let before = witness.count();
        walship::demo::wait::until("commits are acknowledged again", WRITTEN_WITHIN, async || {
            witness.has_more_than(before + WRITTEN)
        })
        .await?;
        witness.judge()
    }
}

/// Its own warnings ask for that.
fn wants_seed(status: Option<&Status>) -> bool {
    let Some(status) = status.filter(|status| status.seeding.is_none()) else { return false };
    status.node.role == Role::Standby && warnings::of(status).iter().any(|said| said.contains("--reseed"))
}
