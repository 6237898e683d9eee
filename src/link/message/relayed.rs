//! How far the nodes are that follow a relay, as the relay tells its own upstream.

use serde::{Deserialize, Deserializer, Serialize};

use super::{Ack, text_u64};
use crate::clock::WallTime;

/// What a relay says of one node that gets its WAL through it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Relayed {
    /// The node's name.
    pub node: String,
    /// Whom it follows: the relay, or a node further down.
    pub upstream: String,
    /// Its store's identity.
    pub store_uuid: String,
    /// Those of its stores before, the oldest first, as in its Hello.
    pub former_store_uuids: Vec<String>,
    /// The certificate that it came with.
    #[serde(with = "text_u64")]
    pub certificate_serial: u64,
    /// Where it is reached, `host:port`.
    pub advertise: Option<String>,
    /// Whether it is connected there.
    pub is_connected: bool,
    /// Since when it is, or is not, by the clock of the one that it follows.
    pub since: WallTime,
    /// How long ago it last said anything, as this was sent.
    pub silent_millis: u64,
    /// The last that it said; `None` when it was not heard on its way yet.
    pub ack: Option<Ack>,
}

/// Nodes in one message; more come in several.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RelayedList(#[serde(deserialize_with = "bounded")] pub Vec<Relayed>);

impl RelayedList {
    /// The most nodes in one message: far below the limit of its kind.
    pub const NODES_MAX: usize = 512;

    /// The most stores that a node had before, for each: those that it had last.
    pub const FORMER_MAX: usize = 16;
}

fn bounded<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Relayed>, D::Error> {
    use serde::de::Error;
    let nodes = Vec::<Relayed>::deserialize(deserializer)?;
    if nodes.len() > RelayedList::NODES_MAX {
        return Err(D::Error::custom(format!(
            "{} nodes, {} are the most",
            nodes.len(),
            RelayedList::NODES_MAX
        )));
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Message;
    use crate::link::frame::limit_bytes;

    #[test]
    fn the_longest_message_is_below_the_limit_and_one_more_node_is_refused() {
        let node = Relayed {
            node: "n".repeat(63),
            upstream: "u".repeat(63),
            store_uuid: "x".repeat(36),
            former_store_uuids: vec!["x".repeat(36); RelayedList::FORMER_MAX],
            certificate_serial: u64::MAX,
            advertise: Some("h".repeat(255 + 6)),
            is_connected: true,
            since: WallTime { unix_micros: i64::MAX },
            silent_millis: u64::MAX,
            ack: None,
        };
        let nodes = vec![node; RelayedList::NODES_MAX];
        let frame = Message::Relayed(RelayedList(nodes.clone())).encode().unwrap();
        // An acknowledgement takes some two hundred bytes more.
        assert!(frame.body.len() + 300 * nodes.len() < limit_bytes(frame.kind), "{}", frame.body.len());
        assert!(Message::decode(frame.clone()).is_ok());
        let more = [nodes.clone(), nodes[..1].to_vec()].concat();
        let error = Message::decode(Message::Relayed(RelayedList(more)).encode().unwrap()).unwrap_err();
        assert!(error.to_string().contains("513 nodes"), "{error}");
    }
}
