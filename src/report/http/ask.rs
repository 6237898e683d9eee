//! A request over HTTP: what is asked, or what is wrong with it.
//!
//! All of it is foreign. What is not understood is refused with what would be: a limit that is misspelt and ignored
//! would send clients to a standby that is hours behind.

use std::fmt::Display;

use super::Answer;
use crate::pg::{Lsn, TimelineId};
use crate::report::threshold::Threshold;
use crate::report::wait::{Timeout, Wait};

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    /// `/metrics`
    Metrics,
    /// `/status`
    Status,
    /// `/health`
    Health,
    /// `/primary`
    Primary,
    /// `/standby`, for one that is no further behind than this.
    Standby(Threshold),
    /// `/wait`
    Wait(Wait),
}

/// What there is, for those who ask for something else.
const PATHS: &str =
    "/metrics\n/status\n/health\n/primary\n/standby?max_lag=64MiB,30s\n/wait?lsn=16/B374D848&timeout=5s\n";

impl Ask {
    /// Reads a request.
    pub fn parse(method: &str, path: &str, query: &str) -> Result<Ask, Answer> {
        if !matches!(method, "GET" | "HEAD") {
            return Err(Answer::text(405, "only GET and HEAD are answered here"));
        }
        let mut parameters = Parameters::parse(query)?;
        let ask = match path {
            "/metrics" => Ask::Metrics,
            "/status" => Ask::Status,
            "/health" => Ask::Health,
            // A primary lags behind nobody; it takes the limit so that one check serves both.
            "/primary" => parameters.take::<Threshold>("max_lag").map(|_| Ask::Primary)?,
            "/standby" => Ask::Standby(parameters.take("max_lag")?.unwrap_or_default()),
            "/wait" => Ask::Wait(parameters.take_wait()?),
            _ => {
                return Err(Answer::text(
                    404,
                    format!("there is no such path; these are:\n{}", PATHS.trim_end()),
                ));
            }
        };
        parameters.end(path)?;
        Ok(ask)
    }
}

/// The parameters that nobody took yet.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn parse(query: &str) -> Result<Parameters, Answer> {
        let parameters = query.split('&').filter(|part| !part.is_empty()).map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            Some((decoded(name)?, decoded(value)?))
        });
        let parameters: Option<Vec<_>> = parameters.collect();
        parameters.map(Parameters).ok_or_else(|| bad("the query is not percent-encoded text"))
    }

    /// Takes the one of that name, if it is there.
    fn take<T: std::str::FromStr<Err: Display>>(&mut self, name: &str) -> Result<Option<T>, Answer> {
        let Some(at) = self.0.iter().position(|(found, _)| found == name) else { return Ok(None) };
        let (_, text) = self.0.swap_remove(at);
        text.parse().map(Some).map_err(|error| bad(format!("{name}: {error}")))
    }

    fn take_wait(&mut self) -> Result<Wait, Answer> {
        let lsn = self.take::<Lsn>("lsn")?;
        let timeline = self.take::<u32>("timeline")?;
        Ok(Wait {
            lsn: lsn.ok_or_else(|| bad("which position? /wait?lsn=16/B374D848"))?,
            timeline: match timeline {
                Some(0) => return Err(bad("timeline: they begin with 1")),
                timeline => timeline.map(TimelineId),
            },
            timeout: self.take("timeout")?.unwrap_or(Timeout::DEFAULT),
        })
    }

    /// Refuses what is left: not known, or there twice.
    fn end(self, path: &str) -> Result<(), Answer> {
        match self.0.first() {
            Some((name, _)) => Err(bad(format!("{path} takes no `{name}`, or takes it once"))),
            None => Ok(()),
        }
    }
}

fn bad(what: impl Display) -> Answer {
    Answer::text(400, what)
}

/// Takes percent-encoding off; `None` when it is none, or no UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn ask(target: &str) -> Result<Ask, Answer> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Ask::parse("GET", path, query)
    }

    #[test]
    fn what_is_understood() {
        let wait = |lsn, timeline: Option<u32>, seconds| {
            let timeout = Timeout(Duration::from_secs(seconds));
            Ok(Ask::Wait(Wait { lsn: Lsn(lsn), timeline: timeline.map(TimelineId), timeout }))
        };
        assert_eq!(ask("/metrics"), Ok(Ask::Metrics));
        assert_eq!(ask("/primary?max_lag=64MiB"), Ok(Ask::Primary));
        assert_eq!(ask("/standby?"), Ok(Ask::Standby(Threshold::default())));
        let limit = Threshold { bytes: Some(64 << 20), time: Some(Duration::from_secs(30)) };
        assert_eq!(ask("/standby?max_lag=64MiB,30s"), Ok(Ask::Standby(limit)));
        assert_eq!(ask("/standby?max_lag=64MiB%2c30s"), Ok(Ask::Standby(limit)));
        assert_eq!(ask("/wait?lsn=0/1000"), wait(0x1000, None, 5));
        assert_eq!(ask("/wait?timeout=1m&lsn=0%2F1000&timeline=3"), wait(0x1000, Some(3), 60));
        assert_eq!(Ask::parse("HEAD", "/health", ""), Ok(Ask::Health));
    }

    #[test]
    fn what_is_refused_and_how() {
        let refused = |target: &str| {
            let answer = ask(target).unwrap_err();
            (answer.code, answer.body)
        };
        for (target, code, text) in [
            ("/", 404, "/metrics\n"),
            ("/metrics/", 404, "no such path"),
            ("/standby?max_lga=64MiB", 400, "/standby takes no `max_lga`"),
            ("/standby?max_lag=64", 400, "max_lag: `64` is neither a size"),
            ("/standby?max_lag=1s&max_lag=9h", 400, "or takes it once"),
            ("/primary?max_lag", 400, "max_lag: `` is neither"),
            ("/health?x", 400, "takes no `x`"),
            ("/wait", 400, "which position?"),
            ("/wait?lsn=16", 400, "lsn: `16` is not a WAL position"),
            ("/wait?lsn=0/1&timeout=9", 400, "timeout: `9` is not a time to wait"),
            ("/wait?lsn=0/1&timeout=2h", 400, "at most 1h"),
            ("/wait?lsn=0/1&timeline=0", 400, "timeline: they begin with 1"),
            ("/wait?lsn=0%2", 400, "not percent-encoded"),
            ("/wait?lsn=%ff", 400, "not percent-encoded"),
            ("/wait?lsn=0%+1", 400, "not percent-encoded"),
        ] {
            let (found, said) = refused(target);
            assert!(found == code && said.contains(text) && said.ends_with('\n'), "{target}: {found} {said}");
        }
        assert_eq!(Ask::parse("POST", "/metrics", "").unwrap_err().code, 405);
    }

    proptest! {
        #[test]
        fn any_query_is_read_or_refused(query in "[a-z0-9=&%+/_.é-]{0,40}|\\PC{0,20}", path in "/(wait|standby|x)") {
            let _ = Ask::parse("GET", &path, &query);
        }
    }
}
