//! Store → link, one per downstream.
//!
//! A downstream is a position: it is sent the compressed bytes as they stand in the segment files, whether it is in
//! step or a week behind, and a stalled one costs nothing but its position. Both directions run at once: WAL,
//! heartbeats, members and the way of the WAL go out, acknowledgements and feedback come in. File reads run on blocking
//! threads. It is the same on a primary and on a standby that others follow: what ships is the store.

mod acks;
mod pace;
pub mod relayed;
mod wal;

use std::sync::Arc;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::WallTime;
use crate::link::message::{self, Code, MemberList, Reject, RelayedList, Resume, Standing};
use crate::link::{Conn, LinkError, Message, PEER_DEAD_AFTER};
use crate::store::{Branch, Cursor, OpenFrame, Store, StoreError, TimelineIdentity, Visibility};
use crate::vitals::{Contact, DownstreamVitals, Vitals};

/// What a stage of this kind is given.
pub struct Shipping {
    /// Where the WAL comes from.
    pub store: Store,
    /// Where the numbers go.
    pub vitals: Arc<Vitals>,
    /// All members, passed on at every change.
    pub members: watch::Receiver<MemberList>,
    /// How WAL comes to this node, passed on at every change.
    pub standing: watch::Receiver<Standing>,
    /// The most that goes over the link; `None` for as fast as it goes.
    pub max_rate_bytes_per_second: Option<u64>,
}

/// Who is shipped to.
#[derive(Clone, Debug)]
pub struct Downstream {
    /// Its node name; the key of its vitals.
    pub name: String,
    /// Where it connected from.
    pub address: String,
    /// Its store; positions count for no other.
    pub store_uuid: Option<String>,
    /// Its stores before, the oldest first: each was emptied for a new copy.
    pub former_store_uuids: Vec<String>,
    /// The certificate that it came with.
    pub certificate_serial: u64,
    /// Where others reach it.
    pub advertise: String,
}

/// A downstream whose words count.
pub struct Counted {
    /// Who it is.
    pub downstream: Downstream,
    /// Where its words of those behind it go.
    pub relayed: mpsc::Sender<RelayedList>,
}

/// Ships to one downstream, whose Hello is done, until it goes, breaks the protocol, or `token` is cancelled.
///
/// Errors are the link's (`LinkError::is_gone` when it merely went away) or the store's. A downstream that asks for
/// what is not here is told so before this returns. Of one that is not `counted`, nothing is noted.
pub async fn run<S>(
    mut conn: Conn<S>,
    shipping: Shipping,
    counted: Option<Counted>,
    token: CancellationToken,
) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let resume = match conn.read_within(PEER_DEAD_AFTER).await? {
        Message::Resume(resume) => resume,
        other => return Err(LinkError::unexpected("Resume", other).into()),
    };
    let cursor = match open(&shipping.store, &resume).await? {
        Ok(cursor) => cursor,
        Err(reject) => {
            conn.reject(reject.clone()).await;
            return Err(LinkError::Refused(Box::new(reject)).into());
        }
    };
    let (downstream, relayed) =
        counted.map_or((None, None), |counted| (Some(counted.downstream), Some(counted.relayed)));
    let entry = Entry::begin(&shipping.vitals, downstream);
    // It has all up to there, so nothing of that is under way.
    entry.update(|vitals| (vitals.timeline, vitals.shipped_lsn) = (Some(resume.timeline), resume.lsn));
    let (reader, writer) = conn.split();
    let sending = wal::send(writer, cursor, resume.timeline, &shipping, &entry);
    let receiving = acks::read(reader, &entry, relayed);
    // Dropping either half ends the connection, so nothing is lost that the peer could still have used.
    tokio::select! {
        result = sending => result,
        result = receiving => result,
        () = token.cancelled() => Ok(()),
    }
}

/// A cursor where the downstream wants to go on; or why it can't. One past the end of its timeline is told of the next,
/// as it alone knows what it has there.
async fn open(store: &Store, resume: &Resume) -> anyhow::Result<Result<Cursor, Reject>> {
    let reject = |code, message: String, hint: &str| Ok(Err(Reject { code, message, hint: hint.to_owned() }));
    let frame = resume.frame.as_ref().map(|frame| OpenFrame {
        start: frame.start_lsn,
        bytes: frame.bytes,
        sha256: frame.sha256.0,
    });
    let removed = |message| reject(Code::Removed, message, "Another node's store may have it still.");
    let (reading, timeline, lsn) = (store.clone(), resume.timeline, resume.lsn);
    let opened = tokio::task::spawn_blocking(move || {
        let cursor = reading.cursor(timeline, lsn, Visibility::Appended)?;
        if let Some((next, switch_lsn)) = reading.switch_of(timeline).filter(|(_, end)| lsn >= *end) {
            // It goes on with the next one at once: that has to be here, too.
            let start = reading.identity().segment_size.start_of(switch_lsn);
            reading.cursor(next, start, Visibility::Appended)?;
        }
        match frame {
            Some(frame) => cursor.resume(&frame),
            None => Ok(cursor),
        }
    });
    match opened.await.context("open the store for reading")? {
        Ok(cursor) => Ok(Ok(cursor)),
        Err(error @ StoreError::Removed { .. }) => removed(error.to_string()),
        // A store that was begun after a promotion does not have what was before, and one that has yet to take part in
        // a promotion will.
        Err(error @ StoreError::UnknownTimeline { .. }) => {
            let (oldest, newest) = (store.oldest().map(|(oldest, _)| oldest), store.newest_timeline());
            if oldest.is_some_and(|oldest| timeline < oldest) {
                removed(error.to_string())
            } else if newest.is_none_or(|newest| newest < timeline) {
                reject(Code::NotReady, error.to_string(), "It is about to follow there; try again.")
            } else {
                let hint = "It is on a branch of history that this node does not have.";
                reject(Code::Diverged, error.to_string(), hint)
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// A timeline's identity in the link's words.
pub fn wire_identity(identity: &TimelineIdentity) -> message::TimelineIdentity {
    message::TimelineIdentity {
        timeline: identity.timeline,
        parent: identity.parent.map(|(parent, _)| parent),
        switch_lsn: identity.switch_lsn(),
        branch: identity.branch.as_ref().map(wire_branch),
    }
}

/// What begot a timeline, for the link.
pub fn wire_branch(branch: &Branch) -> message::Branch {
    message::Branch { epoch: branch.epoch, node: branch.node.clone() }
}

/// A downstream's vitals, for as long as it is connected.
struct Entry {
    vitals: Arc<Vitals>,
    name: Option<String>,
    since: WallTime,
}

impl Entry {
    fn begin(vitals: &Arc<Vitals>, downstream: Option<Downstream>) -> Entry {
        let since = WallTime::now();
        let name = downstream.as_ref().map(|downstream| downstream.name.clone());
        if let Some(Downstream {
            name,
            address,
            store_uuid,
            former_store_uuids,
            certificate_serial,
            advertise,
        }) = downstream
        {
            vitals.downstreams.update(|all| {
                let entry = all.entry(name).or_default();
                entry.connect(since, address, store_uuid);
                (entry.certificate_serial, entry.advertise) = (certificate_serial, advertise);
                entry.former_store_uuids = former_store_uuids;
            });
        }
        Entry { vitals: Arc::clone(vitals), name, since }
    }

    /// What a connection says that has been replaced by a newer one, perhaps of another store, does not count.
    fn update(&self, change: impl FnOnce(&mut DownstreamVitals)) {
        let Some(name) = &self.name else { return };
        self.vitals.downstreams.update(|all| {
            let vitals =
                all.get_mut(name).filter(|vitals| vitals.contact == Contact::Up { since: self.since });
            vitals.map(change);
        });
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.update(|vitals| {
            vitals.contact = Contact::Trying { since: WallTime::now(), error: None };
            vitals.feedback = None;
        });
    }
}

#[cfg(test)]
mod tests;
