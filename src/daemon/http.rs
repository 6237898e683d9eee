//! HTTP for monitoring, load balancers and those who wait: what is asked is answered from this moment's state.
//!
//! HTTP/1 in plain text, read-only. Whoever comes is given bounded time and memory: a head of bounded size within a
//! bounded time, no body, and a bounded time to take the answer. Those who wait for a position have at most
//! [`WAITS`] places, so that a check always finds one.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until};

use super::node::Node;
use super::wait::{self, WAITS};
use super::{door, status, trouble};
use crate::fault::WithFault;
use crate::pg::postmaster;
use crate::report::http::{self, Answer, Ask, Facts};
use crate::report::threshold::Threshold;
use crate::report::wait::{Timeout, Wait};
use crate::report::{Role, Status};
use crate::store::NodeRole;
use crate::vitals::Contact;

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = WAITS + 128;

/// Patience with a request's head, and with a connection that is idle.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;

/// Patience with a client that does not take its answer, or asks nothing more.
const ANSWER_TAKEN_WITHIN: Duration = Duration::from_secs(10);

/// How long a standby that looks too far behind is asked how far it is now.
const LAG_ASKED_FOR: Timeout = Timeout(Duration::from_millis(100));

/// Binds the socket, if there is to be one.
pub async fn bind(node: &Node) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = &node.config.http_listen else { return Ok(None) };
    let listener = TcpListener::bind(address.to_string()).await;
    let listener = listener.with_context(|| format!("listen for HTTP on {address}")).hint(
        "Another process has this address, or it is not this host's: see `http_listen` in walship.toml.",
    )?;
    let address = listener.local_addr().context("look at the listening socket")?;
    tracing::info!(%address, "serving HTTP");
    Ok(Some(listener))
}

/// Serves every connection in a task of its own, until the node ends.
pub async fn run(node: Arc<Node>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let complaint = "cannot accept HTTP connections, trying again";
    while let Some(((tcp, peer), place)) =
        door::next(&places, &node.token, complaint, || listener.accept()).await
    {
        let serving = Arc::clone(&node);
        node.tasks.spawn(async move {
            let token = serving.token.clone();
            // Dropped, a connection is closed, and whoever waited on it waits no more.
            tokio::select! {
                ended = serve(&serving, tcp) => if let Err(error) = ended {
                    tracing::debug!(%peer, "an HTTP connection ended: {error:#}");
                },
                () = token.cancelled() => {}
            }
            drop(place);
        });
    }
}

/// One connection, request by request.
async fn serve(node: &Arc<Node>, tcp: TcpStream) -> anyhow::Result<()> {
    tcp.set_nodelay(true).context("set up the connection")?;
    let (answered, last) = watch::channel(None);
    let service = service_fn(|request| {
        answered.send_replace(None);
        async {
            let response = respond(node, request).await;
            answered.send_replace(Some(Instant::now()));
            Ok::<_, Infallible>(response)
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    server.max_buf_size(HEAD_BYTES_MAX).max_headers(HEADERS_MAX);
    let connection = pin!(server.serve_connection(TokioIo::new(tcp), service));
    tokio::select! {
        ended = connection => ended.context("serve HTTP"),
        () = too_long_since(last) => anyhow::bail!("the answer was not taken, and nothing more was asked"),
    }
}

/// Ends when an answer was given long ago, and no request came since.
async fn too_long_since(mut answered: watch::Receiver<Option<Instant>>) {
    loop {
        let last = *answered.borrow_and_update();
        let due = async {
            match last {
                Some(last) => sleep_until(last + ANSWER_TAKEN_WITHIN).await,
                None => std::future::pending().await,
            }
        };
        // Both branches are cancellation-safe: they only wait.
        tokio::select! {
            () = due => return,
            changed = answered.changed() => if changed.is_err() { std::future::pending().await },
        }
    }
}

async fn respond(node: &Arc<Node>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let has_body = !request.body().is_end_stream();
    let answer = if has_body {
        Answer::text(400, "a request has no body here")
    } else {
        let (uri, method) = (request.uri(), request.method().as_str());
        match Ask::parse(method, uri.path(), uri.query().unwrap_or_default()) {
            Ok(ask) => {
                answer(node, ask).await.unwrap_or_else(|error| Answer::text(500, format!("{error:#}")))
            }
            Err(refusal) => refusal,
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = StatusCode::from_u16(answer.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if answer.code == 405 {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    if has_body {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn answer(node: &Arc<Node>, ask: Ask) -> anyhow::Result<Answer> {
    match ask {
        Ask::Metrics => Ok(http::metrics(&take_status(node).await?)),
        Ask::Status => Ok(http::status(&take_status(node).await?)?),
        Ask::Health => Ok(http::health(&facts(node).await?)),
        Ask::Primary => Ok(http::primary(&facts(node).await?)),
        Ask::Standby(max_lag) => standby(node, &max_lag).await,
        Ask::Wait(wait) => {
            let waited = wait::until_there(node, &wait).await;
            Ok(http::waited(&facts(node).await?, &wait, &waited))
        }
    }
}

async fn standby(node: &Arc<Node>, max_lag: &Threshold) -> anyhow::Result<Answer> {
    if *max_lag == Threshold::default() {
        return Ok(http::standby(&facts(node).await?, max_lag, None));
    }
    let status = take_status(node).await?;
    let first = http::standby(&facts(node).await?, max_lag, Some(&status));
    let known_end = node.vitals.receive.get().server_flush_lsn;
    if first.code == 200 || node.role() != NodeRole::Standby || !known_end.is_valid() {
        return Ok(first);
    }
    // What it said last may be seconds old.
    let wait = Wait { lsn: known_end, timeline: None, timeout: LAG_ASKED_FOR };
    wait::until_there(node, &wait).await;
    let status = take_status(node).await?;
    Ok(http::standby(&facts(node).await?, max_lag, Some(&status)))
}

async fn take_status(node: &Arc<Node>) -> anyhow::Result<Status> {
    node.blocking("take the status", status::of).await
}

/// This moment's, from memory; the file system is asked for the pid file alone, of a primary that can't be reached.
async fn facts(node: &Arc<Node>) -> anyhow::Result<Facts> {
    let role = status::role_of(node.link_role());
    let postgres = match role {
        Role::Standby | Role::Reader => node.vitals.feed.get().contact,
        Role::Primary | Role::Superseded => node.vitals.capture.get().contact,
    };
    let postgres_runs = match postgres {
        Contact::Up { .. } => true,
        _ if role == Role::Primary => {
            let looked = node.blocking("look for PostgreSQL", |node| {
                postmaster::is_running(&node.config.postgres.data_directory)
            });
            looked.await?.context("look for PostgreSQL")?
        }
        _ => false,
    };
    Ok(Facts {
        node: node.config.name.clone(),
        role,
        superseded_by: node.superseded_by().map(|(_, name)| name),
        postgres,
        postgres_runs,
        upstream: node.vitals.receive.get().contact,
        store_trouble: trouble::alarm(node, &node.store.troubles().borrow()),
    })
}
