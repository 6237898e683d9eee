//! The bad network that other tests rely on.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use walship::demo::Proxy;

use crate::harness::eventually;

/// Long enough to see that nothing comes.
const SILENCE: Duration = Duration::from_millis(200);

/// A server that sends back what it gets, on all connections.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut from, mut to) = connection.into_split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    address
}

async fn said_back(connection: &mut TcpStream, text: &str) -> std::io::Result<()> {
    connection.write_all(text.as_bytes()).await?;
    hear(connection, text).await
}

async fn hear(connection: &mut TcpStream, text: &str) -> std::io::Result<()> {
    let mut heard = vec![0; text.len()];
    connection.read_exact(&mut heard).await?;
    assert_eq!(heard, text.as_bytes());
    Ok(())
}

async fn is_closed(connection: &mut TcpStream) -> bool {
    matches!(connection.read(&mut [0]).await, Ok(0) | Err(_))
}

#[tokio::test]
async fn it_passes_and_counts_both_directions_and_the_end() {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
    said_back(&mut connection, "hello").await.unwrap();
    eventually("five bytes are counted each way", async || {
        let traffic = proxy.traffic();
        anyhow::ensure!((traffic.to_target_bytes, traffic.from_target_bytes) == (5, 5), "{traffic:?}");
        Ok(())
    })
    .await;
    connection.shutdown().await.unwrap();
    assert!(is_closed(&mut connection).await, "the end of a direction is passed on and back");
}

#[tokio::test]
async fn a_cut_closes_open_and_new_connections_until_it_heals() {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
    said_back(&mut connection, "before").await.unwrap();
    proxy.cut();
    assert!(is_closed(&mut connection).await);
    let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
    assert!(is_closed(&mut connection).await);
    proxy.heal();
    let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
    said_back(&mut connection, "after").await.unwrap();
}

#[tokio::test]
async fn a_reset_closes_open_connections_only() {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
    said_back(&mut connection, "before").await.unwrap();
    proxy.reset();
    assert!(is_closed(&mut connection).await);
    let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
    said_back(&mut connection, "after").await.unwrap();
}

#[tokio::test]
async fn a_stall_holds_everything_back_and_loses_nothing() {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
    said_back(&mut connection, "before").await.unwrap();
    proxy.stall();
    let mut second = TcpStream::connect(proxy.address()).await.unwrap();
    for connection in [&mut connection, &mut second] {
        connection.write_all(b"meanwhile").await.unwrap();
        let heard = tokio::time::timeout(SILENCE, connection.read_u8()).await;
        assert!(heard.is_err(), "{heard:?} came through");
    }
    proxy.heal();
    hear(&mut connection, "meanwhile").await.unwrap();
    hear(&mut second, "meanwhile").await.unwrap();
}

#[tokio::test]
async fn a_slow_link_has_its_speed_and_healing_ends_it_at_once() {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
    proxy.slow(100_000);
    let began = Instant::now();
    said_back(&mut connection, &"x".repeat(50_000)).await.unwrap();
    let took = began.elapsed();
    // Half a second there; the way back overlaps with it.
    assert!(took >= Duration::from_millis(450) && took < Duration::from_secs(5), "{took:?}");
    proxy.slow(1);
    connection.write_all(b"slowly").await.unwrap();
    proxy.heal();
    hear(&mut connection, "slowly").await.unwrap();
}

#[tokio::test]
async fn a_redirect_moves_new_connections_and_dropping_it_closes_all() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let proxy = Proxy::start(nobody).await.unwrap();
    let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
    assert!(is_closed(&mut connection).await, "nobody listens behind the proxy");
    proxy.redirect(echo().await);
    let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
    said_back(&mut connection, "hello").await.unwrap();
    let address = proxy.address();
    drop(proxy);
    assert!(is_closed(&mut connection).await);
    eventually("the port is closed", async || {
        anyhow::ensure!(TcpStream::connect(address).await.is_err(), "it accepts");
        Ok(())
    })
    .await;
}
