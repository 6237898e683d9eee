//! What a person is told: an error chain, a hint with the next step, and what became of the command.
//!
//! Lower layers return typed errors where a caller branches; above them `anyhow` carries context in verbs. This
//! module adds the two things that neither has: a hint, and the outcome that decides the exit code.

use std::fmt;

use crate::pg::version::Unsupported;

/// What became of a command that did not succeed; `cli/exit` turns it into the exit code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It failed.
    Failed,
    /// The flags, the configuration or the files named are wrong.
    Usage,
    /// Refused, and nothing was changed.
    Refused,
    /// Nobody knows; running it again tells.
    Unknown,
}

impl Outcome {
    /// As another process told it; `None` for failed.
    fn heard(told: Option<&str>) -> Outcome {
        match told {
            Some("refused") => Outcome::Refused,
            Some("usage") => Outcome::Usage,
            Some("unknown") => Outcome::Unknown,
            _ => Outcome::Failed,
        }
    }
}

/// An error with a hint or an outcome attached. Displays as the error itself, so it never shows twice in a chain.
#[derive(Debug)]
pub struct Fault {
    error: anyhow::Error,
    hint: Option<String>,
    outcome: Option<Outcome>,
}

impl Fault {
    /// A new refusal: nothing was changed, and this is what to do instead.
    pub fn refused(what: impl fmt::Display, hint: impl Into<String>) -> anyhow::Error {
        Fault { error: anyhow::anyhow!("{what}"), hint: Some(hint.into()), outcome: Some(Outcome::Refused) }
            .into()
    }

    /// A new error of usage: flags, configuration or files.
    pub fn usage(what: impl fmt::Display, hint: impl Into<String>) -> anyhow::Error {
        Fault { error: anyhow::anyhow!("{what}"), hint: Some(hint.into()), outcome: Some(Outcome::Usage) }
            .into()
    }

    /// A new error with this outcome.
    pub fn ended(what: impl fmt::Display, outcome: Outcome) -> anyhow::Error {
        Fault { error: anyhow::anyhow!("{what}"), hint: None, outcome: Some(outcome) }.into()
    }

    /// An error for another process to read back with [`Fault::told`]: its words, its hint, and its outcome.
    pub fn tell(error: &anyhow::Error) -> (String, Option<String>, Option<String>) {
        let outcome = match Fault::outcome_of(error) {
            Outcome::Refused => Some("refused"),
            Outcome::Usage => Some("usage"),
            Outcome::Unknown => Some("unknown"),
            Outcome::Failed => None,
        };
        (format!("{error:#}"), Fault::hint_of(error).map(str::to_owned), outcome.map(str::to_owned))
    }

    /// An error as another process told it.
    pub fn told(message: String, hint: Option<String>, outcome: Option<&str>) -> anyhow::Error {
        Fault { error: anyhow::anyhow!("{message}"), hint, outcome: Some(Outcome::heard(outcome)) }.into()
    }

    /// An error with a hint, for where there is no `Result` at hand.
    pub fn advise(error: impl Into<anyhow::Error>, hint: impl Into<String>) -> anyhow::Error {
        Fault { hint: Some(hint.into()), ..Fault::of(error.into()) }.into()
    }

    /// An error with both, for where there is no `Result` at hand.
    pub fn with(error: impl Into<anyhow::Error>, hint: impl Into<String>, outcome: Outcome) -> anyhow::Error {
        Fault { hint: Some(hint.into()), outcome: Some(outcome), ..Fault::of(error.into()) }.into()
    }

    /// The fault that an error already is, or a bare one around it.
    fn of(error: anyhow::Error) -> Fault {
        // One further down has context around it, which taking it out would lose.
        let is_one = error.chain().next().is_some_and(|outermost| outermost.is::<Fault>());
        let bare = |error| Fault { error, hint: None, outcome: None };
        if is_one { error.downcast::<Fault>().unwrap_or_else(bare) } else { bare(error) }
    }

    /// The first error of a type in a chain, also within faults, which hide what they wrap.
    pub fn find<T: std::error::Error + Send + Sync + 'static>(error: &anyhow::Error) -> Option<&T> {
        error.downcast_ref().or_else(|| {
            error.chain().find_map(|cause| match cause.downcast_ref::<Fault>() {
                Some(fault) => Fault::find(&fault.error),
                None => cause.downcast_ref(),
            })
        })
    }

    /// The first hint in a chain.
    pub fn hint_of(error: &anyhow::Error) -> Option<&str> {
        faults(error).find_map(|fault| fault.hint.as_deref())
    }

    /// The outermost outcome in a chain; [`Outcome::Failed`] when none says otherwise.
    pub fn outcome_of(error: &anyhow::Error) -> Outcome {
        faults(error).find_map(|fault| fault.outcome).unwrap_or(Outcome::Failed)
    }
}

/// An error with all its causes, for where there is no `anyhow` to print the chain.
pub fn in_full(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn faults(error: &anyhow::Error) -> impl Iterator<Item = &Fault> {
    error.chain().filter_map(|cause| cause.downcast_ref::<Fault>())
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)
    }
}

impl std::error::Error for Fault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.chain().nth(1)
    }
}

/// Adds a hint or an outcome to any result.
pub trait WithFault<T> {
    /// A full sentence with the next command or the thing to look at.
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T>;
    /// Says what became of the command.
    fn outcome(self, outcome: Outcome) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithFault<T> for Result<T, E> {
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|e| Fault::advise(e, hint))
    }

    fn outcome(self, outcome: Outcome) -> anyhow::Result<T> {
        self.map_err(|e| Fault { outcome: Some(outcome), ..Fault::of(e.into()) }.into())
    }
}

/// A typed error of a lower layer that knows the next step.
pub trait Advice: std::error::Error + Send + Sync + 'static {
    /// A full sentence with the next command or the thing to look at.
    fn hint(&self) -> Option<String>;

    /// What became of the command that ended with it, when that is not just failed.
    fn outcome(&self) -> Option<Outcome> {
        None
    }
}

/// Nothing is begun with a PostgreSQL that walship does not work with.
impl Advice for Unsupported {
    fn hint(&self) -> Option<String> {
        Some(self.hint().to_owned())
    }

    fn outcome(&self) -> Option<Outcome> {
        Some(Outcome::Refused)
    }
}

/// Takes an error's own advice into the chain.
pub trait Advised<T> {
    /// The same result, its error a [`Fault`] with what it knows.
    fn advised(self) -> anyhow::Result<T>;
}

impl<T, E: Advice> Advised<T> for Result<T, E> {
    fn advised(self) -> anyhow::Result<T> {
        self.map_err(|error| {
            let (hint, outcome) = (error.hint(), error.outcome());
            Fault { error: error.into(), hint, outcome }.into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn hint_and_outcome_survive_context_and_show_nothing_twice() {
        let io = std::io::Error::other("no space left");
        let error = Err::<(), _>(io)
            .context("write the segment")
            .hint("Free some room.")
            .context("seal")
            .unwrap_err();
        assert_eq!(format!("{error:#}"), "seal: write the segment: no space left");
        assert_eq!(Fault::hint_of(&error), Some("Free some room."));
        assert_eq!(Fault::outcome_of(&error), Outcome::Failed);
        #[derive(Debug, thiserror::Error)]
        #[error("the port is taken")]
        struct Taken;
        impl Advice for Taken {
            fn hint(&self) -> Option<String> {
                Some("Choose another.".to_owned())
            }
        }
        let error = Err::<(), _>(Taken).advised().context("listen").unwrap_err();
        assert_eq!(format!("{error:#}"), "listen: the port is taken");
        assert_eq!(Fault::hint_of(&error), Some("Choose another."));
        assert!(Fault::find::<Taken>(&error).is_some() && Fault::find::<std::io::Error>(&error).is_none());
        let error = Err::<(), _>(error.context("begin")).outcome(Outcome::Refused).unwrap_err();
        assert_eq!(format!("{error:#}"), "begin: listen: the port is taken");
        assert_eq!(
            (Fault::hint_of(&error), Fault::outcome_of(&error)),
            (Some("Choose another."), Outcome::Refused)
        );
        let both = Err::<(), _>(Fault::refused("no", "Ask.")).outcome(Outcome::Unknown).unwrap_err();
        assert_eq!((Fault::hint_of(&both), Fault::outcome_of(&both)), (Some("Ask."), Outcome::Unknown));
    }
}
