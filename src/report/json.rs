//! [`Status`] and lag for programs.
//!
//! The serialisable mirror of the plain types, so that an inner rename never changes what a program reads. A status
//! goes both ways: `walship status` takes it as JSON from the daemon's control socket and renders it at home. Fields
//! that a newer walship adds are ignored. Times are RFC 3339 in UTC, durations are seconds, what is not known is
//! `null`, and the system identifier is a string, because it does not fit the numbers of every JSON reader.

mod check;
mod commits;
mod exposures;
mod lag;
mod mirror;

pub use check::check;
pub use exposures::exposures;
pub use lag::{LagJson, lag};
pub use mirror::StatusJson;

use super::Status;

/// A text that is not a status.
#[derive(Debug, thiserror::Error)]
#[error("the status is not one that this version of walship can read")]
pub struct StatusError(#[from] serde_json::Error);

/// A status as indented JSON with a line end.
pub fn render(status: &Status) -> Result<String, StatusError> {
    let mut text = serde_json::to_string_pretty(&StatusJson::from(status.clone()))?;
    text.push('\n');
    Ok(text)
}

/// A status as one line of JSON without an end, for the control socket.
pub fn encode(status: Status) -> Result<Vec<u8>, StatusError> {
    Ok(serde_json::to_vec(&StatusJson::from(status))?)
}

/// Reads a status back.
pub fn decode(text: &[u8]) -> Result<Status, StatusError> {
    Ok(serde_json::from_slice::<StatusJson>(text)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::status;

    #[test]
    fn a_status_goes_both_ways() {
        let status = status();
        assert_eq!(decode(&encode(status.clone()).unwrap()).unwrap(), status);
        assert_eq!(decode(render(&status).unwrap().as_bytes()).unwrap(), status);
    }

    #[test]
    fn what_is_not_known_is_null_and_never_zero() {
        let mut status = status();
        let store = &mut status.store;
        (store.start, store.appended, store.durable, store.sealed) = Default::default();
        store.max_bytes = 0;
        status.node.postgres_version.clear();
        let text = render(&status).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        for name in ["start", "appended", "durable", "sealed", "max_bytes"] {
            assert!(json["store"][name].is_null(), "{name}: {text}");
        }
        assert!(json["node"]["postgres_version"].is_null(), "{text}");
        assert_eq!(decode(text.as_bytes()).unwrap(), status);
    }

    #[test]
    fn unknown_fields_are_ignored_and_nonsense_is_refused() {
        let text = render(&status()).unwrap();
        let newer = text.replacen('{', "{\"from_the_future\": [1, 2],", 1);
        assert_eq!(decode(newer.as_bytes()).unwrap(), status());
        for cut in [0, 1, text.len() / 2, text.len() - 3] {
            assert!(decode(&text.as_bytes()[..cut]).is_err());
        }
        assert!(decode(b"{}").is_err());
    }
}
