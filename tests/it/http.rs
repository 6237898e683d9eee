//! HTTP: what each path says of a node, at which moment, and who can't keep it from answering.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use walship::demo::cluster::rows_of;
use walship::demo::{ClusterOptions, Proxy};
use walship::report::{Role, json};

use crate::harness::{Node, PATIENCE, PROMOTE, Test, eventually};

/// Has a node serve HTTP when it is started.
pub fn serves_http(test: &Test, node: &mut Node) -> SocketAddr {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, test.port()));
    node.sidecar.set("WALSHIP_HTTP_LISTEN", &address.to_string());
    address
}

/// A primary that others reach through a proxy.
async fn primary(test: &Test) -> (Node, SocketAddr, Proxy) {
    let mut db1 = Node::new(test, "db1", ClusterOptions::default()).await;
    let link = Proxy::start(db1.listen()).await.unwrap();
    db1.advertise = link.address();
    let http = serves_http(test, &mut db1);
    db1.init().await;
    db1.start_primary().await;
    (db1, http, link)
}

async fn standby(test: &Test, name: &str, primary: &Node) -> (Node, SocketAddr) {
    let mut node = Node::empty(test, name);
    let http = serves_http(test, &mut node);
    node.join(&primary.invite(name).await, &[]);
    node.follows(primary).await;
    (node, http)
}

/// What comes back for some bytes until the server closes the connection.
async fn exchange(address: SocketAddr, request: &[u8]) -> anyhow::Result<String> {
    let mut tcp = TcpStream::connect(address).await?;
    // A server that refuses what it read so far may have closed already.
    let _ = tcp.write_all(request).await;
    let mut response = Vec::new();
    let read = timeout(PATIENCE, tcp.read_to_end(&mut response)).await.context("no answer, and no end")?;
    // An answer that was followed by a reset is an answer.
    read.or_else(|error| if response.is_empty() { Err(error) } else { Ok(0) })?;
    Ok(String::from_utf8_lossy(&response).into_owned())
}

fn split(response: &str) -> (u16, &str, &str) {
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((response, ""));
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    (code.unwrap_or_else(|| panic!("no status line: {response:?}")), head, body)
}

async fn ask(address: SocketAddr, target: &str) -> anyhow::Result<(u16, String)> {
    let request = format!("GET {target} HTTP/1.1\r\nHost: walship\r\nConnection: close\r\n\r\n");
    let response = exchange(address, request.as_bytes()).await?;
    let (code, _, body) = split(&response);
    Ok((code, body.trim_end().to_owned()))
}

pub async fn get(address: SocketAddr, target: &str) -> (u16, String) {
    ask(address, target).await.unwrap()
}

async fn code_of(address: SocketAddr, target: &str) -> u16 {
    get(address, target).await.0
}

/// Waits until a path has this code; what it says then.
async fn until(address: SocketAddr, target: &str, wanted: u16) -> String {
    eventually(&format!("{target} is {wanted}"), async || {
        let (code, said) = ask(address, target).await?;
        ensure!(code == wanted, "{code}: {said}");
        Ok(said)
    })
    .await
}

#[tokio::test]
async fn every_path_says_what_the_node_is() {
    let test = Test::new();
    let (db1, http1, _link) = primary(&test).await;
    let (mut db2, http2) = standby(&test, "db2", &db1).await;
    until(http2, "/health", 200).await;
    assert_eq!(get(http1, "/primary").await, (200, "db1 is the primary".to_owned()));
    assert_eq!(get(http2, "/primary").await, (503, "db2 is a standby".to_owned()));
    assert_eq!(get(http1, "/standby").await, (503, "db1 is the primary".to_owned()));
    assert_eq!(get(http2, "/standby").await, (200, "db2 is a standby".to_owned()));
    assert_eq!(get(http1, "/health").await, (200, "db1 is the primary".to_owned()));
    assert_eq!(get(http1, "/nothing").await.0, 404);

    for (node, http, role) in [(&db1, http1, Role::Primary), (&db2, http2, Role::Standby)] {
        let (code, text) = get(http, "/status").await;
        let status = json::decode(text.as_bytes()).unwrap();
        assert_eq!((code, status.node.name.as_str(), status.node.role), (200, node.name(), role));
        let (code, metrics) = get(http, "/metrics").await;
        let info = format!("walship_info{{node=\"{}\",role=\"{}\"", node.name(), role.name());
        assert!(code == 200 && metrics.contains(&info) && !metrics.contains("NaN"), "{metrics}");
        assert!(metrics.contains("walship_lag_bytes{standby=\"db2\",stage=\"replay\"}"), "{metrics}");
        assert!(metrics.contains("walship_postgres_connected 1"), "{metrics}");
    }
    let head =
        exchange(http1, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let (code, head, body) = split(&head);
    assert!(code == 200 && body.is_empty() && head.contains("version=0.0.4"), "{head}");

    // A sidecar that is still starting PostgreSQL takes its end for a failed start.
    db2.sidecar.terminate().await;
    db2.run().await;
    until(http2, "/health", 200).await;
    db2.stops().await;
    for path in ["/standby", "/health"] {
        let said = until(http2, path, 503).await;
        assert!(said.starts_with("the sidecar of db2 is not connected to its PostgreSQL"), "{said}");
    }
    db1.stops().await;
    assert_eq!(until(http1, "/primary", 503).await, "PostgreSQL of db1 is down");
    assert_eq!((code_of(http1, "/health").await, code_of(http2, "/health").await), (503, 503));
}

#[tokio::test]
async fn what_was_committed_is_seen_200_times_over_one_connection() {
    let test = Test::new();
    let (db1, _, link) = primary(&test).await;
    let (db2, http) = standby(&test, "db2", &db1).await;
    let (primary, standby) = (db1.cluster.connect().await.unwrap(), db2.cluster.connect().await.unwrap());
    rows_of(&primary, "CREATE TABLE t (a int)").await.unwrap();
    let mut tcp = TcpStream::connect(http).await.unwrap();
    let mut response = vec![0; 4096];
    for round in 1..=200 {
        let insert = format!(
            "INSERT INTO t VALUES ({round});
             SELECT lsn || ' ' || pg_walfile_name(lsn) FROM pg_current_wal_insert_lsn() AS lsn"
        );
        let rows = rows_of(&primary, &insert).await.unwrap();
        let (lsn, segment) = rows[0].split_once(' ').unwrap();
        let timeline = u32::from_str_radix(&segment[..8], 16).unwrap();
        let request =
            format!("GET /wait?lsn={lsn}&timeline={timeline}&timeout=30s HTTP/1.1\r\nHost: x\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let read = timeout(PATIENCE, tcp.read(&mut response)).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&response[..read]).into_owned();
        assert!(split(&said).0 == 200 && said.contains("db2 has replayed "), "round {round}: {said}");
        let seen = rows_of(&standby, &format!("SELECT count(*) FROM t WHERE a = {round}")).await.unwrap();
        assert_eq!(seen, ["1"], "round {round}, at {lsn}");
    }
    link.cut();
    db1.cluster.sql("INSERT INTO t VALUES (0)").await.unwrap();
    let lsn = db1.cluster.value("SELECT pg_current_wal_insert_lsn()").await.unwrap();
    let (code, said) = get(http, &format!("/wait?lsn={lsn}&timeout=200ms")).await;
    assert!(code == 504 && said.contains(&format!("and not {lsn} after 0.2s")), "{code} {said}");
    db2.cluster.kill().await.unwrap();
    let said = until(http, &format!("/wait?lsn={lsn}&timeout=0s"), 503).await;
    assert!(said.starts_with("it is not known how far db2 is"), "{said}");
}

/// The codes that a path had one after another, until told to stop.
async fn watch(
    address: SocketAddr,
    target: &'static str,
    stop: tokio_util::sync::CancellationToken,
) -> Vec<u16> {
    let mut seen = Vec::new();
    while !stop.is_cancelled() {
        let code = code_of(address, target).await;
        if seen.last() != Some(&code) {
            seen.push(code);
        }
    }
    seen
}

#[tokio::test]
async fn a_promotion_flips_both_paths_once_and_before_it_says_that_it_is_done() {
    let test = Test::new();
    let (mut db1, http1, _link) = primary(&test).await;
    let (db2, http2) = standby(&test, "db2", &db1).await;
    let (db3, http3) = standby(&test, "db3", &db1).await;
    for node in [&db2, &db3] {
        node.follows(&db1).await;
        node.knows(&["db1", "db2", "db3"]).await;
    }
    until(http2, "/standby", 200).await;
    db1.dies().await;
    assert!(ask(http1, "/primary").await.is_err(), "a sidecar that is gone answers nobody");
    let stop = tokio_util::sync::CancellationToken::new();
    let watched = ["/primary", "/standby"].map(|path| tokio::spawn(watch(http2, path, stop.clone())));
    db2.walship(&PROMOTE).await.succeeded();
    assert_eq!((code_of(http2, "/primary").await, code_of(http2, "/standby").await), (200, 503));
    assert_eq!(code_of(http3, "/primary").await, 503);
    stop.cancel();
    let [primary, standby] = watched;
    assert_eq!(primary.await.unwrap(), [503, 200]);
    assert_eq!(standby.await.unwrap(), [200, 503]);
    until(http2, "/health", 200).await;
    until(http3, "/health", 200).await;

    // Back again, the old primary is none as soon as it hears of the other.
    db1.sidecar.expect_log("this node was superseded");
    db1.cluster.start().await.unwrap();
    db1.run().await;
    assert_eq!(until(http1, "/primary", 503).await, "db1 was superseded by db2");
    for path in ["/standby", "/health"] {
        assert_eq!(get(http1, path).await, (503, "db1 was superseded by db2".to_owned()));
    }
    let lsn = db2.cluster.value("SELECT pg_current_wal_insert_lsn()").await.unwrap();
    let (code, said) = get(http1, &format!("/wait?lsn={lsn}")).await;
    assert!(code == 503 && said.contains("superseded"), "{code} {said}");
}

#[tokio::test]
async fn a_standby_behind_the_limit_is_not_read_from() {
    let test = Test::new();
    let (db1, _, link) = primary(&test).await;
    let (db2, http) = standby(&test, "db2", &db1).await;
    let within = "/standby?max_lag=64KiB,1m";
    until(http, within, 200).await;
    db2.cluster.sql("SELECT pg_wal_replay_pause()").await.unwrap();
    db2.cluster.wait_until("SELECT pg_get_wal_replay_pause_state() = 'paused'", PATIENCE).await.unwrap();
    db1.cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 10000)").await.unwrap();
    let said = until(http, within, 503).await;
    assert!(
        said.starts_with("db2 is a standby, ") && said.ends_with(" behind, more than 64.0 KiB"),
        "{said}"
    );
    let said = until(http, "/standby?max_lag=100ms", 503).await;
    assert!(said.ends_with(" behind, more than 0.1s"), "{said}");
    assert_eq!(code_of(http, "/standby").await, 200, "without a limit it is a standby like any");
    assert_eq!(code_of(http, "/standby?max_lag=1GiB,1h").await, 200);
    db2.cluster.sql("SELECT pg_wal_replay_resume()").await.unwrap();
    until(http, within, 200).await;

    // Cut off, nobody knows the bytes; what it shows is no older than the cut.
    link.cut();
    let said = until(http, "/standby?max_lag=1TiB", 503).await;
    assert_eq!(said, "db2 is a standby, and it is not known how many bytes behind");
    until(http, "/health", 503).await;
    assert_eq!(code_of(http, "/standby?max_lag=1h").await, 200);
    until(http, "/standby?max_lag=1s", 503).await;
    assert_eq!(code_of(http, "/standby").await, 200);
    link.heal();
    until(http, within, 200).await;
}

#[tokio::test]
async fn garbage_is_refused_and_harms_nobody() {
    let test = Test::new();
    let (_db1, http, _link) = primary(&test).await;
    let long = "x".repeat(40_000);
    let many = (0..200).map(|n| format!("H{n}: x\r\n")).collect::<String>();
    let refused = [
        ("\r\n\r\n\r\nno http\r\n\r\n".to_owned(), 400),
        (format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nHost: {long}\r\n\r\n"), 431),
        (format!("GET / HTTP/1.1\r\n{many}\r\n"), 431),
        ("GET /primary HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello".to_owned(), 400),
        (
            "GET /primary HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_owned(),
            400,
        ),
        ("GET /primary HTTP/1.1\r\nContent-Length: -1\r\n\r\n".to_owned(), 400),
        ("GET /standby?max_lag=%zz HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), 400),
        ("DELETE /status HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), 405),
        ("CONNECT db1:5432 HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), 405),
        ("OPTIONS * HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), 405),
        ("GET primary HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), 404),
        ("GET /../../etc/passwd HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), 404),
    ];
    for (request, expected) in refused {
        let response = exchange(http, request.as_bytes()).await.unwrap();
        let shown = &request[..request.len().min(80)];
        assert_eq!(split(&response).0, expected, "{shown:?}: {response}");
    }
    let allowed =
        exchange(http, b"PUT / HTTP/1.1\r\nConnection: close\r\n\r\n").await.unwrap().to_lowercase();
    assert!(allowed.contains("allow: get, head"), "{allowed}");

    let mut random = test.random();
    for _ in 0..300 {
        let length = random.below(600) as usize;
        let mut bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
        if random.below(2) == 0 {
            bytes.splice(0..0, *b"GET /wait?lsn=");
        }
        let mut tcp = TcpStream::connect(http).await.unwrap();
        let _ = tcp.write_all(&bytes).await;
        let _ = tcp.shutdown().await;
        let mut response = Vec::new();
        let _ = timeout(PATIENCE, tcp.read_to_end(&mut response)).await.expect("no end");
        assert!(!response.starts_with(b"HTTP/1.1 2") && !response.starts_with(b"HTTP/1.1 5"), "{bytes:?}");
    }
    assert_eq!(code_of(http, "/primary").await, 200);
}

/// Whether the server closes a connection within the bounds it has for an idle one.
async fn is_closed_in_time(mut tcp: TcpStream) -> Duration {
    let begun = Instant::now();
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, tcp.read_to_end(&mut rest)).await.expect("it is still open");
    begun.elapsed()
}

#[tokio::test]
async fn slow_and_silent_clients_are_let_go() {
    let test = Test::new();
    let (_db1, http, _link) = primary(&test).await;
    let silent = TcpStream::connect(http).await.unwrap();
    let mut slow = TcpStream::connect(http).await.unwrap();
    slow.write_all(b"GET /primary HTTP/1.1\r\nHost: ").await.unwrap();
    let mut idle = TcpStream::connect(http).await.unwrap();
    idle.write_all(b"GET /primary HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    // Asks again and again, and reads nothing of it.
    let mut greedy = TcpStream::connect(http).await.unwrap();
    let asking = tokio::spawn(async move {
        while greedy.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.is_ok() {}
    });
    let closed = tokio::join!(is_closed_in_time(silent), is_closed_in_time(slow), is_closed_in_time(idle));
    for waited in [closed.0, closed.1, closed.2] {
        assert!(waited > Duration::from_secs(3) && waited < PATIENCE / 2, "{closed:?}");
    }
    timeout(PATIENCE, asking).await.expect("a client that reads nothing is served for ever").unwrap();
    assert_eq!(code_of(http, "/primary").await, 200);
}

#[tokio::test]
async fn many_connections_keep_nobody_out_for_long() {
    let test = Test::new();
    let (db1, http1, _link) = primary(&test).await;
    let (db2, http) = standby(&test, "db2", &db1).await;
    // More who wait than there are places: the others are told at once, and checks are answered.
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..300 {
        waiting.spawn(async move { ask(http, "/wait?lsn=FFFF/0&timeout=1h").await.unwrap() });
    }
    for _ in 0..300 - 256 {
        let (code, said) = timeout(PATIENCE, waiting.join_next()).await.unwrap().unwrap().unwrap();
        assert!(code == 503 && said.contains("256 are waiting here already"), "{code} {said}");
    }
    let begun = Instant::now();
    assert_eq!(code_of(http, "/standby").await, 200);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(waiting.len(), 256);
    drop(waiting);
    let lsn = db1.cluster.value("SELECT pg_current_wal_insert_lsn()").await.unwrap();
    until(http, &format!("/wait?lsn={lsn}&timeout=1s"), 200).await;
    db2.walship(&["wait", "--lsn", &lsn]).await.succeeded();

    // More connections than there are places, that say nothing: they end before anybody's patience does.
    let mut silent = Vec::new();
    for _ in 0..500 {
        silent.push(TcpStream::connect(http1).await.unwrap());
    }
    let begun = Instant::now();
    assert_eq!(code_of(http1, "/primary").await, 200);
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    db1.status().await.unwrap();
}

#[tokio::test]
async fn an_address_in_use_is_one_clear_error_and_none_is_the_default() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    assert!(db1.sidecar.log().contains("serving HTTP").is_err());
    db1.sidecar.terminate().await;
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    db1.sidecar.set("WALSHIP_HTTP_LISTEN", &address);
    db1.sidecar.start(&["run"]);
    assert_eq!(db1.sidecar.ended().await.code(), Some(1));
    db1.sidecar.wait_log(&format!("walship: listen for HTTP on {address}: Address already in use")).await;
    db1.sidecar.wait_log("see `http_listen` in walship.toml").await;
    drop(taken);
    db1.run().await;
    assert_eq!(get(address.parse().unwrap(), "/primary").await.0, 200);
}
