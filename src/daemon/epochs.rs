//! Telling the others of a promotion, and hearing of one.
//!
//! A primary dials every member that does not follow it, again and again, so that nobody goes on following a sidecar
//! whose PostgreSQL was left behind, however the network was at the time of the promotion. Both sides say what they know:
//! an old primary that comes back hears of the new one from anybody whom either of them reaches. Who hears of a higher
//! committed epoch leaves its upstream, or, a primary itself, ships nothing any more and has its PostgreSQL stopped.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

use super::ask;
use super::node::Node;
use crate::failpoint;
use crate::link::message::{Hello, Purpose, Role};
use crate::store::{NodeRole, Superseded};
use crate::tls::Identity;
use crate::vitals::Contact;

const TELL_EVERY: Duration = Duration::from_secs(2);
const TELL_WITHIN: Duration = Duration::from_secs(4);

/// What a new primary is called by those who only know that there is one.
const SOMEBODY: &str = "another node";

/// Tells every member that is not connected who the primary is, and hears what it knows, until it is cancelled.
pub async fn tell(node: Arc<Node>) -> anyhow::Result<()> {
    let mut tick = interval(TELL_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        // One that was left behind has no news.
        if node.superseded_by().is_some() {
            continue;
        }
        let following = node.vitals.downstreams.get();
        for member in node.store.state().members {
            let follows =
                following.get(&member.name).is_some_and(|at| matches!(at.contact, Contact::Up { .. }));
            if follows || member.name == node.config.name || member.advertise.is_empty() {
                continue;
            }
            let (telling, tasks) = (Arc::clone(&node), node.tasks.clone());
            tasks.spawn(async move {
                let told = timeout(TELL_WITHIN, greet(&telling, &member.advertise)).await;
                tracing::debug!(member = %member.name, ?told, "told who is the primary");
            });
        }
    }
}

/// The Hello of any connection says it all.
async fn greet(node: &Arc<Node>, address: &str) -> anyhow::Result<()> {
    let (mut link, hello) = ask::open(node, address, Purpose::Ask).await?;
    link.conn.close().await?;
    hear(node, &hello, link.identity.as_ref()).await
}

/// Takes note of a primary whose committed epoch is above this node's. A primary takes it from anyone who knows of the
/// epoch: it must stop also where the new one does not reach it. A standby has time until that does.
pub async fn hear(node: &Arc<Node>, hello: &Hello, identity: Option<&Identity>) -> anyhow::Result<()> {
    let is_node = identity.is_some_and(Identity::is_node);
    let epoch = hello.committed_epoch;
    if is_node {
        look_for_a_rival(node, hello);
    }
    if !is_node || epoch <= node.store.state().committed_epoch {
        return Ok(());
    }
    match (node.role(), hello.role) {
        (NodeRole::Standby, Role::Primary) => {
            let noted = node.blocking("note the new epoch", move |node| {
                node.store.update_state(|state| state.learn(epoch))
            });
            noted.await??;
            tracing::info!(primary = %hello.node, epoch, "heard of a new primary");
            node.newer_primary.send_replace(Some((epoch, hello.node.clone())));
        }
        (NodeRole::Standby, _) => {}
        (NodeRole::Primary, _) => {
            let name = new_primary(node, hello);
            if is_news(node.store.state().superseded.as_ref(), epoch, &name) {
                supersede(node, epoch, &name).await?;
            }
        }
    }
    Ok(())
}

/// Takes note of another primary of the same epoch, or that it is none any more. Neither left the other behind, so neither
/// is stopped: which one is to stay only a person knows.
fn look_for_a_rival(node: &Node, hello: &Hello) {
    let epoch = node.store.state().committed_epoch;
    let is_rival = node.link_role() == Role::Primary
        && hello.role == Role::Primary
        && hello.node != node.config.name
        && hello.committed_epoch == epoch;
    let changed = node.rival.send_if_modified(|known| {
        let rival = is_rival.then(|| (epoch, hello.node.clone()));
        let is_about = rival.is_some() || known.as_ref().is_some_and(|(_, name)| *name == hello.node);
        is_about && std::mem::replace(known, rival.clone()) != rival
    });
    if let Some(alarm) = rivalry(node).filter(|_| changed) {
        tracing::error!("{alarm}");
    }
}

/// What a person must know while there is another primary of the same epoch.
pub fn rivalry(node: &Node) -> Option<String> {
    let (epoch, rival) = node.rival.borrow().clone()?;
    let is_one = node.link_role() == Role::Primary && node.store.state().committed_epoch == epoch;
    is_one.then(|| {
        format!(
            "{rival} is a primary of epoch {epoch}, too, and each has what the other lacks: stop walship and PostgreSQL on the one \
             that is to give way, hand over to a standby of the other (`walship switchover`), and start it again: it is \
             superseded then, and `walship rejoin` keeps what it alone has"
        )
    })
}

/// Who was promoted, by the word of a node that knows the epoch: itself, or whom its WAL comes from.
fn new_primary(node: &Node, hello: &Hello) -> String {
    let primary = match hello.role {
        Role::Primary => Some(hello.node.as_str()),
        _ => hello.route.primary(),
    };
    primary.filter(|primary| *primary != node.config.name).unwrap_or(SOMEBODY).to_owned()
}

/// A later promotion is, and who it was of one of which only the epoch is known.
fn is_news(known: Option<&Superseded>, epoch: u64, by: &str) -> bool {
    known.is_none_or(|known| {
        known.epoch < epoch || known.epoch == epoch && known.by == SOMEBODY && by != SOMEBODY
    })
}

/// This node is the primary no more. Its own epoch stays what it is: a higher one would make others follow it.
async fn supersede(node: &Arc<Node>, epoch: u64, name: &str) -> anyhow::Result<()> {
    let by = name.to_owned();
    let noted = node.blocking("note who was promoted", move |node| {
        failpoint::hit("superseded-heard");
        let mut known = None;
        node.store.update_state(|state| {
            known = state.superseded.clone();
            if is_news(known.as_ref(), epoch, &by) {
                state.leave_behind(epoch, by);
            }
        })?;
        // Here, for whoever waits for this may be cancelled, and what is noted is no news to the next.
        let superseded = node.store.state().superseded;
        node.newer_primary.send_replace(superseded.map(|superseded| (superseded.epoch, superseded.by)));
        anyhow::Ok(known.is_some_and(|known| known.epoch >= epoch))
    });
    // Several may tell of it at once, and one with a name after one without.
    if noted.await?? {
        return Ok(());
    }
    if node.store.state().superseded.is_some_and(|superseded| superseded.handed_over) {
        tracing::info!(primary = %name, epoch, "handed over: PostgreSQL here stays down until this node has rejoined");
        return Ok(());
    }
    tracing::error!(
        primary = %name, epoch,
        "this node was superseded: it ships nothing any more, and its PostgreSQL is stopped; what that accepted since is lost \
         to the others; `walship rejoin` makes it a standby"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_promotion_is_news_and_a_name_for_the_one_that_is_known() {
        let known = |epoch, by: &str| Some(Superseded { epoch, by: by.to_owned(), handed_over: false });
        assert!(is_news(None, 1, SOMEBODY) && is_news(known(1, "db2").as_ref(), 2, SOMEBODY));
        assert!(is_news(known(2, SOMEBODY).as_ref(), 2, "db2"));
        assert!(
            !is_news(known(2, "db2").as_ref(), 2, SOMEBODY) && !is_news(known(2, "db2").as_ref(), 2, "db3")
        );
        // Nobody goes back to an earlier one for its name.
        assert!(!is_news(known(3, SOMEBODY).as_ref(), 2, "db2"));
    }
}
