//! Named failure points, in debug builds only: where a test makes a process die or dawdle.
//!
//! `WALSHIP_FAILPOINTS="store.seal=abort,ship.send=sleep:200ms,store.sync=hold:/tmp/held"` says what happens at which
//! point, and is read once.
//! A release build does not look at the variable at all.

use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// The variable that sets the points of a process.
pub const VARIABLE: &str = "WALSHIP_FAILPOINTS";

/// Whether this build has failure points.
pub const ENABLED: bool = cfg!(debug_assertions);

/// What happens at a point.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Action {
    /// The process dies at once, without running anything that would tidy up.
    Abort,
    /// The thread sleeps, every time.
    Sleep(Duration),
    /// The thread goes on when this file is not there.
    Hold(PathBuf),
    /// What was to be done fails, every time, as on a broken disk.
    Fail,
}

/// How often it is looked for a file that holds.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Does what was asked for at the point of this name, usually nothing. The name says module and moment, such as
/// `store.seal.before_rename`.
pub fn hit(name: &str) {
    match action(name) {
        Some(Action::Abort) => std::process::abort(),
        Some(Action::Sleep(duration)) => std::thread::sleep(*duration),
        Some(Action::Hold(file)) => {
            while file.exists() {
                std::thread::sleep(LOOK_EVERY);
            }
        }
        Some(Action::Fail) => panic!("nothing fails at {name}"),
        None => {}
    }
}

/// The error that was asked for at the point of this name, usually none: instead of doing what could fail.
pub fn error(name: &str) -> Option<io::Error> {
    match action(name) {
        Some(Action::Fail) => Some(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())),
        _ => None,
    }
}

fn action(name: &str) -> Option<&'static Action> {
    if !ENABLED {
        return None;
    }
    static POINTS: OnceLock<Vec<(String, Action)>> = OnceLock::new();
    let points = POINTS.get_or_init(|| {
        let text = std::env::var(VARIABLE).unwrap_or_default();
        parse(&text).unwrap_or_else(|wrong| {
            // A test that believes in a failure that never comes is worse than one that fails.
            tracing::error!(
                "{VARIABLE}: `{wrong}` is not NAME=abort, NAME=fail, NAME=sleep:DURATION or NAME=hold:FILE"
            );
            std::process::abort()
        })
    });
    let (_, action) = points.iter().find(|(point, _)| point == name)?;
    tracing::debug!("failure point {name}: {action:?}");
    Some(action)
}

/// Reads the variable's value; the error is the part that is wrong.
fn parse(text: &str) -> Result<Vec<(String, Action)>, String> {
    let one = |part: &str| {
        let (name, action) = part.split_once('=')?;
        let action = match action.split_once(':') {
            None if action == "abort" => Action::Abort,
            None if action == "fail" => Action::Fail,
            Some(("sleep", duration)) => {
                Action::Sleep(jiff::fmt::friendly::SpanParser::new().parse_unsigned_duration(duration).ok()?)
            }
            Some(("hold", file)) if !file.is_empty() => Action::Hold(file.into()),
            _ => return None,
        };
        Some((name.to_owned(), action))
    };
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| one(part).ok_or_else(|| part.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_and_nonsense_is_named() {
        let all = parse("store.seal=abort, ship.send=sleep:200ms,store.sync=fail,").unwrap();
        let sleep = Action::Sleep(Duration::from_millis(200));
        let expected = [("store.seal", Action::Abort), ("ship.send", sleep), ("store.sync", Action::Fail)];
        assert_eq!(all, expected.map(|(name, action)| (name.to_owned(), action)));
        assert_eq!(parse("a=hold:/x"), Ok(vec![("a".to_owned(), Action::Hold("/x".into()))]));
        assert_eq!(parse(""), Ok(Vec::new()));
        for wrong in ["a", "a=", "a=die", "a=sleep", "a=sleep:x", "a=abort:1", "a=hold:"] {
            assert_eq!(parse(&format!("b=abort,{wrong}")), Err(wrong.to_owned()));
        }
    }

    #[test]
    fn a_point_that_nobody_set_does_nothing() {
        hit("failpoint.test");
    }
}
