//! PostgreSQL's own side of the policy: whether it waits for walship at all.
//!
//! It should wait only while a policy is in effect that makes the wait worth something, so it is turned on after the
//! policy, and off before it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::node::Node;
use crate::capture::APPLICATION_NAME;
use crate::fault::Fault;
use crate::pg::sql::Sql;

/// How often PostgreSQL is asked for the setting.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long PostgreSQL may take to read a changed configuration.
const RELOAD_WITHIN: Duration = Duration::from_secs(10);
const RELOAD_LOOK_EVERY: Duration = Duration::from_millis(50);

/// Follows the setting for as long as this node is the primary, until it is cancelled.
pub async fn watch(node: Arc<Node>) -> anyhow::Result<()> {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        // A session each time: a smart stop waits for one that is kept.
        let asked = async { Sql::connect(&node.conninfo).await?.sync_setting().await };
        let setting = asked.await.ok();
        node.setting.send_if_modified(|known| std::mem::replace(known, setting.clone()) != setting);
    }
}

/// Whether PostgreSQL waits for walship; what is not known may be so.
pub fn may_wait_for_us(node: &Node) -> bool {
    node.setting.borrow().as_ref().is_none_or(|setting| setting.names().names(APPLICATION_NAME))
}

/// Refuses to turn the setting on or off where walship may not, with the SQL.
pub async fn check(node: &Node, on: bool) -> anyhow::Result<()> {
    is_to_be_turned(&Sql::connect(&node.conninfo).await?, on).await.map(drop)
}

/// The same, and says whether there is anything to do.
async fn is_to_be_turned(sql: &Sql, on: bool) -> anyhow::Result<bool> {
    let setting = sql.sync_setting().await?;
    let names = setting.names();
    if names.names(APPLICATION_NAME) == on {
        return Ok(false);
    }
    let by_hand = by_hand(on);
    if names.names_others_than(APPLICATION_NAME) {
        let hint = match on {
            true => format!("Name walship there by hand. To wait for walship alone: {by_hand}"),
            false => format!("Take walship out by hand. To wait for nobody: {by_hand}"),
        };
        let what = format!("synchronous_standby_names = '{}' names others, too", setting.standby_names);
        return Err(Fault::refused(what, hint));
    }
    if !sql.may_set_sync_names().await? {
        let what = "walship's role may not change synchronous_standby_names";
        return Err(Fault::refused(what, format!("As a superuser on the primary: {by_hand}")));
    }
    Ok(true)
}

/// Has PostgreSQL wait for walship, or for nobody; says whether that changed anything.
pub async fn turn(node: &Node, on: bool) -> anyhow::Result<bool> {
    let sql = Sql::connect(&node.conninfo).await?;
    if !is_to_be_turned(&sql, on).await? {
        return Ok(false);
    }
    sql.set_sync_names(if on { APPLICATION_NAME } else { "" }).await?;
    let begun = Instant::now();
    loop {
        let now = sql.sync_setting().await?;
        if now.names().names(APPLICATION_NAME) == on {
            node.setting.send_replace(Some(now));
            return Ok(true);
        }
        if begun.elapsed() > RELOAD_WITHIN {
            let what = format!("PostgreSQL still has synchronous_standby_names = '{}'", now.standby_names);
            let hint = "Something overrides postgresql.auto.conf, such as the server's command line.";
            return Err(Fault::advise(anyhow::anyhow!("{what}"), hint));
        }
        sleep(RELOAD_LOOK_EVERY).await;
    }
}

/// What a superuser types.
fn by_hand(on: bool) -> String {
    let standby = if on { APPLICATION_NAME } else { "" };
    format!("ALTER SYSTEM SET synchronous_standby_names = '{standby}'; SELECT pg_reload_conf();")
}
