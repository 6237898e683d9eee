//! Whether the two ends of a connection belong together.
//!
//! The dialling end sends its [`Hello`], the other end checks it and answers with its own, which the dialling end
//! checks. The end that finds something wrong tells the other in a [`Reject`] and closes, so both report the same.

mod mismatch;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::message::{Code, Hello, Purpose, Reject, Role, TimelineIdentity};
use super::{Conn, HANDSHAKE_WITHIN, LinkError, Message, PROTOCOL};
use crate::tls::{Identity, Kind};

pub use mismatch::Mismatch;

/// Which end checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// It asked, and would receive.
    Dialling,
    /// It is asked, and would send.
    Accepting,
}

/// The dialling end's part: says Hello and gives back the answer, once it is found to fit. `certificate` is the
/// peer's; `None` on a connection without TLS.
pub async fn greet<S: AsyncRead + AsyncWrite>(
    conn: &mut Conn<S>,
    ours: &Hello,
    certificate: Option<&Identity>,
) -> Result<Hello, LinkError> {
    let asking = async {
        let written = conn.write(Message::Hello(Box::new(ours.clone()))).await;
        match (conn.read().await, written) {
            (Ok(Message::Hello(hello)), Ok(())) => Ok(hello),
            (Ok(other), _) => Err(LinkError::unexpected("Hello", other)),
            // An accepting end that does not like our certificate has said so before our Hello was there.
            (Err(e), Ok(())) => Err(e),
            (Err(e), Err(_)) if !e.is_gone() => Err(e),
            (Err(_), Err(e)) => Err(e),
        }
    };
    let answer = timeout(HANDSHAKE_WITHIN, asking).await.unwrap_or(Err(LinkError::Silent(HANDSHAKE_WITHIN)));
    let checked = match answer {
        Ok(theirs) => check(ours, &theirs, certificate, Side::Dialling).map(|()| theirs),
        Err(LinkError::Protocol { theirs }) => Err(Mismatch::Protocol { ours: PROTOCOL, theirs }),
        Err(e) => return Err(complain(conn, e).await),
    };
    match checked {
        Ok(theirs) => Ok(*theirs),
        Err(mismatch) => Err(send_away(conn, mismatch).await),
    }
}

/// The accepting end's part: waits for the Hello, checks it, lets `admit` have the last word (is this certificate
/// bound to another store, is this purpose served now?), and answers.
pub async fn answer<S: AsyncRead + AsyncWrite>(
    conn: &mut Conn<S>,
    ours: &Hello,
    certificate: Option<&Identity>,
    admit: impl FnOnce(&Hello) -> Result<(), Reject>,
) -> Result<Hello, LinkError> {
    let checked = match conn.read_within(HANDSHAKE_WITHIN).await {
        Ok(Message::Hello(theirs)) => check(ours, &theirs, certificate, Side::Accepting).map(|()| theirs),
        Err(LinkError::Protocol { theirs }) => Err(Mismatch::Protocol { ours: PROTOCOL, theirs }),
        Ok(other) => return Err(complain(conn, LinkError::unexpected("Hello", other)).await),
        Err(e) => return Err(complain(conn, e).await),
    };
    let theirs = match checked {
        Ok(theirs) => theirs,
        Err(mismatch) => return Err(send_away(conn, mismatch).await),
    };
    if let Err(reject) = admit(&theirs) {
        conn.reject(reject.clone()).await;
        return Err(LinkError::Refused(Box::new(reject)));
    }
    let ours = Hello { purpose: theirs.purpose, ..ours.clone() };
    let answered = timeout(HANDSHAKE_WITHIN, conn.write(Message::Hello(Box::new(ours)))).await;
    answered.unwrap_or(Err(LinkError::Silent(HANDSHAKE_WITHIN)))?;
    Ok(*theirs)
}

async fn send_away<S: AsyncRead + AsyncWrite>(conn: &mut Conn<S>, mismatch: Mismatch) -> LinkError {
    conn.reject(mismatch.reject()).await;
    Box::new(mismatch).into()
}

/// Tells a peer that is there, and did not hang up itself, that it broke the protocol.
async fn complain<S: AsyncRead + AsyncWrite>(conn: &mut Conn<S>, error: LinkError) -> LinkError {
    if !error.is_gone() && !matches!(error, LinkError::Rejected(_) | LinkError::Tls(_)) {
        let hint = error.hint().unwrap_or_default();
        conn.reject(Reject { code: Code::Violation, message: error.to_string(), hint }).await;
    }
    error
}

/// Whether `theirs` fits `ours`. What either end does not know is not compared.
pub fn check(
    ours: &Hello,
    theirs: &Hello,
    certificate: Option<&Identity>,
    side: Side,
) -> Result<(), Mismatch> {
    if theirs.protocol != ours.protocol {
        return Err(Mismatch::Protocol { ours: ours.protocol, theirs: theirs.protocol });
    }
    if let Some(certificate) = certificate {
        check_certificate(theirs, certificate)?;
    }
    let asker = match side {
        Side::Dialling => ours,
        Side::Accepting => theirs,
    };
    let answers_what_was_asked = side == Side::Accepting || theirs.purpose == ours.purpose;
    if asker.purpose == Purpose::Unknown || !answers_what_was_asked {
        return Err(Mismatch::Purpose { node: theirs.node.clone() });
    }
    check_cluster(ours, theirs)?;
    if asker.purpose == Purpose::Ask {
        // A node that missed a promotion, or has another timeline, is just what one wants to ask.
        return Ok(());
    }
    check_roles(ours, theirs, asker, side)?;
    check_formats(ours, theirs)?;
    let (source, target) = match side {
        Side::Dialling => (theirs, ours),
        Side::Accepting => (ours, theirs),
    };
    if asker.purpose != Purpose::Salvage {
        check_epochs(source, target)?;
    }
    if asker.purpose == Purpose::Stream {
        check_route(source, target)?;
    }
    match asker.purpose {
        Purpose::Stream | Purpose::Wal | Purpose::Salvage => check_timelines(ours, theirs),
        // A backup replaces whatever history the asker had.
        _ => Ok(()),
    }
}

fn check_certificate(theirs: &Hello, certificate: &Identity) -> Result<(), Mismatch> {
    if theirs.node != certificate.name {
        return Err(Mismatch::Name { hello: theirs.node.clone(), certificate: certificate.name.clone() });
    }
    let role = match theirs.role {
        Role::Primary | Role::Superseded => "primary",
        Role::Standby => "standby",
        Role::Reader => return Ok(()),
    };
    match certificate.kind {
        Kind::Node => Ok(()),
        Kind::Reader => Err(Mismatch::Reader { node: theirs.node.clone(), role }),
    }
}

fn check_cluster(ours: &Hello, theirs: &Hello) -> Result<(), Mismatch> {
    match (ours.system_identifier, theirs.system_identifier) {
        (Some(ours_is), Some(theirs_is)) if ours_is != theirs_is => Err(Mismatch::SystemIdentifier {
            here: ours.node.clone(),
            there: theirs.node.clone(),
            ours: ours_is,
            theirs: theirs_is,
        }),
        _ => Ok(()),
    }
}

fn check_roles(ours: &Hello, theirs: &Hello, asker: &Hello, side: Side) -> Result<(), Mismatch> {
    if asker.purpose == Purpose::Stream {
        if asker.role == Role::Reader {
            return Err(Mismatch::ReaderFollows { node: asker.node.clone() });
        }
        if ours.node == theirs.node {
            return Err(Mismatch::Itself { node: ours.node.clone() });
        }
    }
    if side == Side::Dialling && theirs.role == Role::Reader {
        return Err(Mismatch::Reader { node: theirs.node.clone(), role: "source" });
    }
    Ok(())
}

fn check_formats(ours: &Hello, theirs: &Hello) -> Result<(), Mismatch> {
    let (here, there) = (ours.node.clone(), theirs.node.clone());
    match (ours.segment_size, theirs.segment_size) {
        (Some(ours), Some(theirs)) if ours != theirs => {
            return Err(Mismatch::SegmentSize { here, there, ours, theirs });
        }
        _ => {}
    }
    let major = |hello: &Hello| hello.postgres_version.map(|version| version / 10_000);
    match (major(ours), major(theirs)) {
        (Some(ours), Some(theirs)) if ours != theirs => {
            Err(Mismatch::PostgresMajor { here, there, ours, theirs })
        }
        _ => Ok(()),
    }
}

/// WAL and copies come only from a node that knows of every promotion that the receiver knows of or has promised.
fn check_epochs(source: &Hello, target: &Hello) -> Result<(), Mismatch> {
    let known = target.promised_epoch.max(target.committed_epoch);
    if source.committed_epoch >= known {
        return Ok(());
    }
    Err(Mismatch::Epoch {
        source_node: source.node.clone(),
        committed: source.committed_epoch,
        target_node: target.node.clone(),
        known,
    })
}

/// Nobody follows those who follow it, at whatever distance.
fn check_route(source: &Hello, target: &Hello) -> Result<(), Mismatch> {
    let (source_node, target_node) = (source.node.clone(), target.node.clone());
    let route = source.route.clone();
    if route.leads_through(&target_node) {
        return Err(Mismatch::Loop { source_node, target_node, route });
    }
    if !route.has_room() {
        return Err(Mismatch::TooFar { source_node, target_node, route });
    }
    Ok(())
}

fn check_timelines(ours: &Hello, theirs: &Hello) -> Result<(), Mismatch> {
    let differs =
        |one: &&TimelineIdentity, other: &TimelineIdentity| one.timeline == other.timeline && **one != *other;
    for identity in &theirs.timelines {
        if let Some(own) = ours.timelines.iter().find(|own| differs(own, identity)) {
            return Err(Mismatch::Timeline {
                timeline: own.timeline,
                here: ours.node.clone(),
                there: theirs.node.clone(),
                ours: own.origin(),
                theirs: identity.origin(),
            });
        }
    }
    Ok(())
}

impl TimelineIdentity {
    /// How the timeline came to be, in words.
    fn origin(&self) -> String {
        let TimelineIdentity { parent, switch_lsn, branch, .. } = self;
        let from =
            parent.map_or_else(String::new, |parent| format!(" from timeline {parent} at {switch_lsn}"));
        match branch {
            Some(branch) => format!("branched{from} by {} in epoch {}", branch.node, branch.epoch),
            None if parent.is_some() => format!("branched{from} by a promotion that walship does not know"),
            None => "the first timeline".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
