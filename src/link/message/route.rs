//! The way that WAL takes to a node: through which others, and whether from a primary.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// The way up from a node. What is known of it may be a moment old; it is told anew at every change.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Route {
    /// The names: the node itself, the one that it follows, and so on.
    #[serde(deserialize_with = "bounded")]
    pub nodes: Vec<String>,
    /// The last of them is the primary; otherwise it follows nobody at the moment.
    pub from_primary: bool,
}

/// What a node stands on: said down the stream when it begins and whenever it changes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Standing {
    /// How the sender's WAL comes to it.
    #[serde(flatten)]
    pub route: Route,
    /// The highest epoch that the sender knows to be committed.
    pub committed_epoch: u64,
}

/// A node would get its own WAL back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loop {
    /// The way up, once around, to before the node itself: it leads to no primary.
    pub cut: Route,
    /// This node is the one of them that leaves. All of a loop see the same names, and the greatest goes: if each
    /// went, they might meet again.
    pub is_ours_to_break: bool,
}

impl Route {
    /// Nodes in a route at most.
    pub const NODES_MAX: usize = 32;

    /// That of a primary.
    pub fn of_primary(name: &str) -> Route {
        Route { nodes: vec![name.to_owned()], from_primary: true }
    }

    /// That of a node which follows nobody.
    pub fn alone(name: &str) -> Route {
        Route { nodes: vec![name.to_owned()], from_primary: false }
    }

    /// Whether WAL comes through the node of that name.
    pub fn leads_through(&self, name: &str) -> bool {
        self.nodes.iter().any(|node| node == name)
    }

    /// Whether it has room for another node below.
    pub fn has_room(&self) -> bool {
        self.nodes.len() < Route::NODES_MAX
    }

    /// The route of a node that follows this one; what is beyond the limit is left out, and no primary is known then.
    pub fn below(&self, name: &str) -> Result<Route, Loop> {
        let around = self.nodes.iter().position(|node| node == name);
        let nodes = self.nodes.iter().take(around.unwrap_or(self.nodes.len())).take(Route::NODES_MAX - 1);
        let nodes: Vec<String> = std::iter::once(name.to_owned()).chain(nodes.cloned()).collect();
        if around.is_none() {
            return Ok(Route { nodes, from_primary: self.from_primary && self.has_room() });
        }
        let is_ours_to_break = nodes.iter().all(|node| node.as_str() <= name);
        Err(Loop { cut: Route { nodes, from_primary: false }, is_ours_to_break })
    }

    /// The primary that the WAL comes from.
    pub fn primary(&self) -> Option<&str> {
        self.nodes.last().filter(|_| self.from_primary).map(String::as_str)
    }
}

/// `db3 <- db2 <- db1`, as the WAL flows.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.nodes.join(" <- "))
    }
}

fn bounded<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let nodes = Vec::<String>::deserialize(deserializer)?;
    if nodes.len() > Route::NODES_MAX {
        let reason = format!("a route of {} nodes, {} are the most", nodes.len(), Route::NODES_MAX);
        return Err(D::Error::custom(reason));
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(names: &[&str], from_primary: bool) -> Route {
        Route { nodes: names.iter().map(|name| (*name).to_owned()).collect(), from_primary }
    }

    #[test]
    fn a_route_grows_downwards_and_says_so() {
        let route = Route::of_primary("db1").below("db2").unwrap().below("db3").unwrap();
        assert_eq!(route.to_string(), "db3 <- db2 <- db1");
        assert_eq!(route.primary(), Some("db1"));
        assert!(route.leads_through("db2") && !route.leads_through("db4"));
        assert_eq!(Route::alone("db2").below("db3").unwrap().primary(), None);
    }

    #[test]
    fn one_of_a_loop_breaks_it_and_all_of_it_agree_which() {
        let [one, two, three] = [["db2", "db3", "db1"], ["db3", "db1", "db2"], ["db1", "db2", "db3"]];
        for (upstream, name, breaks) in [(one, "db1", false), (two, "db2", false), (three, "db3", true)] {
            let found = route(&upstream, false).below(name).unwrap_err();
            assert_eq!(found.is_ours_to_break, breaks, "{name}");
            assert_eq!(found.cut, route(&[name, upstream[0], upstream[1]], false));
        }
        // What lies beyond the node itself is the same again, or was before it.
        let found = route(&["db2", "db1", "db9"], true).below("db1").unwrap_err();
        assert_eq!(found, Loop { cut: route(&["db1", "db2"], false), is_ours_to_break: false });
    }

    #[test]
    fn a_route_is_bounded() {
        let mut longest = Route::of_primary("db1");
        while longest.has_room() {
            longest = longest.below(&format!("n{}", longest.nodes.len())).unwrap();
        }
        assert_eq!((longest.nodes.len(), longest.primary()), (Route::NODES_MAX, Some("db1")));
        let further = longest.below("last").unwrap();
        assert_eq!((further.nodes.len(), further.primary()), (Route::NODES_MAX, None));
        let mut text = serde_json::to_value(&longest).unwrap();
        assert_eq!(serde_json::from_value::<Route>(text.clone()).unwrap(), longest);
        text["nodes"].as_array_mut().unwrap().push("another".into());
        assert!(serde_json::from_value::<Route>(text).unwrap_err().to_string().contains("33 nodes"));
    }
}
