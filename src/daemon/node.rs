//! What every part of a running node shares: its configuration, its store, its numbers, and who it is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::request::Request;
use super::tunnel::TUNNELS;
use super::votes::Freeze;
use super::wait::WAITS;
use super::{hooks, rejoin, reseed};
use crate::ack::Tracker;
use crate::backup::Backups;
use crate::clock::WallTime;
use crate::config::Config;
use crate::feed::ReplyRequests;
use crate::link::message::{self, Hello, Positions, Purpose, Role, Route, Standing, StoreStart};
use crate::link::{PROTOCOL, Security};
use crate::pg::sql::sync::SyncSetting;
use crate::pg::{Conninfo, Levels, Lsn};
use crate::restore::Progress;
use crate::ship::wire_identity;
use crate::store::{NodeRole, Store};
use crate::tls::{Credentials, Files, for_postgres};
use crate::vitals::{Cell, Vitals};

/// How long a standby that seeded itself anew leaves it at that.
const RESEED_PAUSE: Duration = Duration::from_secs(600);

/// Where what is asked of a standby's life goes in.
pub struct Inlets {
    /// Promotions.
    pub promotions: mpsc::Sender<Request>,
    /// Re-seeds.
    pub reseeds: mpsc::Sender<reseed::Request>,
    /// Votes.
    pub freezes: mpsc::Sender<Freeze>,
    /// A primary's that was left behind.
    pub rejoins: mpsc::Sender<rejoin::Request>,
}

/// A node of the cluster, as this process runs it.
pub struct Node {
    /// The configuration; fixed for the life of the process.
    pub config: Config,
    /// How to reach the local PostgreSQL.
    pub conninfo: Conninfo,
    /// The one log.
    pub store: Store,
    /// The numbers.
    pub vitals: Arc<Vitals>,
    /// Base backups that are being taken from here.
    pub backups: Arc<Backups>,
    /// The part it plays now.
    pub role: watch::Sender<NodeRole>,
    /// All nodes as the primary knows them; on a standby as it passed them on.
    pub members: watch::Sender<message::MemberList>,
    /// How WAL comes to this node, for those who follow it.
    pub standing: watch::Sender<Standing>,
    /// Where the local PostgreSQL would begin to replay after a crash; invalid while unknown.
    pub restartpoint: watch::Sender<Lsn>,
    /// How far the members are, and what that releases while this node is the primary.
    tracker: Mutex<Tracker>,
    /// How far commits are released at each level while this node is the primary.
    pub released: watch::Sender<Levels<Lsn>>,
    /// Whether PostgreSQL waits for standbys, and for whom; a primary's, `None` while it does not answer.
    pub setting: watch::Sender<Option<SyncSetting>>,
    /// The newest promotion of another node that this one was told of: its epoch and its name.
    pub newer_primary: watch::Sender<Option<(u64, String)>>,
    /// Another primary of this one's own epoch, where each was promoted on its side of a cut: that epoch and its name.
    pub rival: watch::Sender<Option<(u64, String)>>,
    /// How far the copy is that this node takes of the primary's data directory.
    pub progress: Arc<Cell<Progress>>,
    /// Requests for a promotion; carried out one at a time.
    pub promotions: mpsc::Sender<Request>,
    /// Requests to seed this node anew; one at a time.
    pub reseeds: mpsc::Sender<reseed::Request>,
    /// Requests to become a standby, of a primary that was left behind.
    pub rejoins: mpsc::Sender<rejoin::Request>,
    /// Why a primary that was left behind has not rejoined by itself yet; `None` while it is to be asked.
    pub rejoin_waits: watch::Sender<Option<String>>,
    /// Promises to make, as a standby.
    pub freezes: mpsc::Sender<Freeze>,
    /// Whether this node's PostgreSQL, a primary's, was stopped and is to stay down: nobody captures from it.
    pub stays_down: watch::Sender<bool>,
    /// What the command after a change of role was told.
    pub hooks: watch::Sender<hooks::Outcome>,
    /// When it last began to seed itself anew.
    pub reseeded: Mutex<Option<Instant>>,
    /// Asks the local standby's walreceiver how far it is.
    pub replies: ReplyRequests,
    /// Places for those who wait for a position.
    pub waits: Semaphore,
    /// Places for other nodes that are being rewound.
    pub tunnels: Semaphore,
    /// Cancelled when the process is to end.
    pub token: CancellationToken,
    /// Everything that runs.
    pub tasks: TaskTracker,
    credentials: Mutex<Arc<Credentials>>,
}

impl Node {
    /// A node on an open store. Blocks: it reads certificates.
    pub fn new(
        config: Config,
        store: Store,
        role: NodeRole,
        inlets: Inlets,
        progress: Arc<Cell<Progress>>,
    ) -> anyhow::Result<Arc<Node>> {
        let vitals = Arc::new(Vitals::default());
        let credentials = load_credentials(&config)?;
        let conninfo = conninfo(&config)?;
        let state = store.state();
        let superseded = state.superseded.map(|superseded| (superseded.epoch, superseded.by));
        let stays_down = superseded.is_some() || state.promise.is_some_and(|promise| promise.stops_primary);
        Ok(Arc::new(Node {
            backups: Backups::new(Arc::clone(&vitals)),
            vitals,
            role: watch::Sender::new(role),
            members: watch::Sender::default(),
            standing: watch::Sender::new(Standing::default()),
            restartpoint: watch::Sender::new(Lsn::INVALID),
            released: watch::Sender::new(Levels::default()),
            setting: watch::Sender::new(None),
            tracker: Mutex::new(Tracker::new(&config.name)),
            newer_primary: watch::Sender::new(superseded),
            rival: watch::Sender::default(),
            stays_down: watch::Sender::new(stays_down),
            hooks: watch::Sender::default(),
            progress,
            promotions: inlets.promotions,
            reseeds: inlets.reseeds,
            freezes: inlets.freezes,
            rejoins: inlets.rejoins,
            rejoin_waits: watch::Sender::new(None),
            reseeded: Mutex::new(None),
            replies: ReplyRequests::default(),
            waits: Semaphore::new(WAITS),
            tunnels: Semaphore::new(TUNNELS),
            token: CancellationToken::new(),
            tasks: TaskTracker::new(),
            credentials: Mutex::new(credentials),
            conninfo,
            config,
            store,
        }))
    }

    /// The certificates to dial and listen with.
    pub fn security(&self) -> Security {
        Security::Tls(self.credentials())
    }

    /// The certificates as they were read last.
    pub fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&self.credentials.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the certificates anew; connections that are open keep the ones they have. Blocks.
    pub fn reload_credentials(&self) -> anyhow::Result<()> {
        let fresh = load_credentials(&self.config)?;
        *self.credentials.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// Whether it may seed itself anew when its log is gone. A store that is too small for its standbys would have it do
    /// nothing else, so it waits between two times.
    pub fn may_reseed_now(&self) -> bool {
        let last = *self.reseeded.lock().unwrap_or_else(PoisonError::into_inner);
        self.config.auto_reseed && last.is_none_or(|last| last.elapsed() >= RESEED_PAUSE)
    }

    /// What the members' positions release.
    pub fn tracker(&self) -> MutexGuard<'_, Tracker> {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its role now.
    pub fn role(&self) -> NodeRole {
        *self.role.borrow()
    }

    /// The promotion of another node that left this one behind, a primary: its epoch and its node.
    pub fn superseded_by(&self) -> Option<(u64, String)> {
        self.newer_primary.borrow().clone().filter(|_| self.role() == NodeRole::Primary)
    }

    /// The same as others are told it.
    pub fn link_role(&self) -> Role {
        match self.role() {
            NodeRole::Primary if self.superseded_by().is_some() => Role::Superseded,
            NodeRole::Primary => Role::Primary,
            NodeRole::Standby => Role::Standby,
        }
    }

    /// What it says of itself at the start of a connection.
    pub fn hello(&self, purpose: Purpose) -> Hello {
        let state = self.store.state();
        let (identity, promised_epoch) = (self.store.identity(), state.binding_epoch());
        Hello {
            protocol: PROTOCOL,
            purpose,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.config.name.clone(),
            role: self.link_role(),
            system_identifier: Some(identity.system_identifier),
            store_uuid: Some(identity.store_uuid.clone()),
            former_store_uuids: state.former_store_uuids,
            promised_epoch,
            committed_epoch: state.committed_epoch,
            timelines: state.timelines.iter().map(wire_identity).collect(),
            positions: self.positions(),
            postgres_version: (state.server_version > 0).then_some(state.server_version),
            segment_size: Some(identity.segment_size.bytes()),
            advertise: Some(self.config.advertise.to_string()),
            route: self.standing.borrow().route.clone(),
            kept: self.store.oldest().map(|(timeline, start_lsn)| StoreStart { timeline, start_lsn }),
        }
    }

    /// Notes how WAL comes to this node from now on, and tells those who follow it.
    pub fn stand_on(&self, route: Route) {
        let standing = Standing { route, committed_epoch: self.store.state().committed_epoch };
        self.standing.send_if_modified(|current| {
            let changed = *current != standing;
            *current = standing;
            changed
        });
    }

    /// The primary as it is known here: its name, and where it is reached.
    pub fn primary(&self) -> Option<(String, String)> {
        let list = self.members.borrow();
        let primary = list.members.iter().find(|member| member.role == Role::Primary)?;
        Some((primary.name.clone(), primary.advertise.clone().unwrap_or_default()))
    }

    /// Where it is, when its store holds anything.
    pub fn positions(&self) -> Option<Positions> {
        let at = *self.store.positions().borrow();
        // A primary replays nothing after a crash that others would need kept for it.
        let (replayed_lsn, restartpoint_lsn) = match self.role() {
            NodeRole::Primary => (at.durable, Lsn::INVALID),
            NodeRole::Standby => (self.vitals.feed.get().replayed_lsn, *self.restartpoint.borrow()),
        };
        Some(Positions {
            timeline: at.timeline?,
            written_lsn: at.appended,
            flushed_lsn: at.durable,
            replayed_lsn,
            restartpoint_lsn,
        })
    }

    /// Runs something that blocks on a thread of its own.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Node>,
        doing: &'static str,
        work: impl FnOnce(&Node) -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let node = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&node)).await.context(doing)
    }
}

/// How to reach the PostgreSQL of a configuration; encrypted where the server can.
pub fn conninfo(config: &Config) -> anyhow::Result<Conninfo> {
    let conninfo = Conninfo::parse(&config.postgres.conninfo.0)?;
    Ok(conninfo.with_tls(Arc::new(for_postgres()?)))
}

/// Reads this node's certificates. Blocks.
pub fn load_credentials(config: &Config) -> anyhow::Result<Arc<Credentials>> {
    use crate::fault::WithFault;
    let files = Files::in_folder(&config.tls_folder());
    match Credentials::load(&files, WallTime::now()) {
        Ok(credentials) => Ok(Arc::new(credentials)),
        Err(error) => {
            let hint = error.hint();
            Err(error).hint(hint)
        }
    }
}
