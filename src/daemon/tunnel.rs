//! The primary's end of another node's pg_rewind: a session of this node's PostgreSQL, logged in as always.

use std::sync::Arc;

use anyhow::Context;

use super::node::Node;
use crate::fault::Fault;
use crate::link::message::{Code, Reject};
use crate::link::{Conn, Socket};
use crate::pg::AccessError;
use crate::pg::control::ControlFile;
use crate::pg::replication::Session;
use crate::pg::sql::{Grant, Sql};
use crate::rewind;

/// Nodes that are rewound at once; one has a single connection.
pub const TUNNELS: usize = 4;

/// What pg_stat_activity shows of it.
const APPLICATION_NAME: &str = "walship rewind";

/// Serves one connection of a node's pg_rewind to its end.
pub async fn serve(node: &Arc<Node>, conn: Conn<Socket>, client: &str) -> anyhow::Result<()> {
    let place = node.tunnels.try_acquire();
    let prepare = async {
        if place.is_err() {
            let hint = "Run it again later.".to_owned();
            return Err(Reject {
                code: Code::NotReady,
                message: "others are being rewound".to_owned(),
                hint,
            });
        }
        let session = session(node).await.map_err(|error| {
            let hint =
                Fault::hint_of(&error).unwrap_or("`walship check` there shows what is wrong.").to_owned();
            let message = format!("PostgreSQL beside {} serves no pg_rewind: {error:#}", node.config.name);
            Reject { code: Code::NotReady, message, hint }
        })?;
        tracing::info!(node = %client, "its pg_rewind may read the data directory");
        Ok(session)
    };
    rewind::serve(conn, prepare).await
}

async fn session(node: &Arc<Node>) -> anyhow::Result<Session> {
    let sql = Sql::connect(&node.conninfo).await?;
    if !sql.has(Grant::ReadFiles).await? {
        let sql_that_mends = Grant::ReadFiles.sql_that_mends(sql.role(), sql.version());
        return Err(AccessError::MissingGrant { what: Grant::ReadFiles.what(), sql_that_mends }.into());
    }
    show_timeline(node, &sql).await?;
    Ok(Session::open(&node.conninfo, APPLICATION_NAME).await?)
}

/// pg_rewind up to PostgreSQL 15 takes the source's timeline from its control file, which has the one before until the
/// first checkpoint after a promotion.
async fn show_timeline(node: &Arc<Node>, sql: &Sql) -> anyhow::Result<()> {
    let read =
        node.blocking("read pg_control", |node| ControlFile::read(&node.config.postgres.data_directory));
    let control = read.await?.context("read pg_control")?;
    if Some(control.timeline) < node.store.newest_timeline() {
        sql.checkpoint().await.context("have its control file show the new timeline")?;
    }
    Ok(())
}
