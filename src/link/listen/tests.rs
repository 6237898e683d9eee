//! Dialling and listening over real sockets.

use super::*;
use crate::clock::WallTime;
use crate::link::Message;
use crate::link::dial::dial;
use crate::link::message::Heartbeat;
use crate::tls::{Authority, Kind, Pem};

fn tls(authority: &Authority, name: &str, kind: Kind) -> Security {
    let now = WallTime::now();
    let issued = authority.issue(name, kind, now).unwrap();
    let (certificate, key) = (Pem::new("node.pem", issued.certificate), Pem::new("node.key", issued.key));
    let credentials = Credentials::from_pem(authority.certificate(), &certificate, &key, now).unwrap();
    Security::Tls(Arc::new(credentials))
}

fn authority() -> Authority {
    Authority::create("test", WallTime::now()).unwrap()
}

async fn listener() -> (Listener, String) {
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_address().unwrap().to_string();
    (listener, address)
}

/// What a stranger's bytes lead to.
async fn arrival_of(bytes: &[u8]) -> LinkError {
    let (listener, address) = listener().await;
    let security = tls(&authority(), "db1", Kind::Node);
    let mut stranger = TcpStream::connect(&address).await.unwrap();
    stranger.write_all(bytes).await.unwrap();
    stranger.shutdown().await.unwrap();
    listener.accept().await.secure(&security).await.unwrap_err()
}

#[tokio::test]
async fn messages_pass_and_both_ends_know_the_other() {
    let authority = authority();
    let (listener, address) = listener().await;
    let (server, client) = (tls(&authority, "db1", Kind::Node), tls(&authority, "db2", Kind::Node));
    let serve = async { listener.accept().await.secure(&server).await };
    let (served, dialled) = tokio::join!(serve, dial(&address, &client));
    let (mut served, mut dialled) = (served.unwrap(), dialled.unwrap());
    assert_eq!(served.identity.unwrap().name, "db2");
    assert_eq!(dialled.identity.unwrap().name, "db1");
    let beat = Message::Heartbeat(Heartbeat::BARE);
    dialled.conn.write(beat.clone()).await.unwrap();
    assert_eq!(served.conn.read().await.unwrap(), beat);
    drop(dialled.conn);
    assert!(matches!(served.conn.read().await, Err(LinkError::Closed)), "an unannounced end is an end");
}

#[tokio::test]
async fn large_messages_pass_in_both_directions_at_once() {
    use crate::link::message::FileChunk;
    let authority = authority();
    let (listener, address) = listener().await;
    let (server, client) = (tls(&authority, "db1", Kind::Node), tls(&authority, "db2", Kind::Node));
    let serve = async { listener.accept().await.secure(&server).await };
    let (served, dialled) = tokio::join!(serve, dial(&address, &client));
    let data: Vec<u8> = (0..FileChunk::RAW_LIMIT_BYTES).map(|n| (n % 251) as u8).collect();
    let chunk = Message::FileChunk(FileChunk { offset: 0, compressed: false, data: data.into() });
    let exchange = async |link: Link| {
        let (mut reader, mut writer) = link.conn.split();
        let write = async {
            for _ in 0..4 {
                writer.write(chunk.clone()).await.unwrap();
            }
        };
        let read = async {
            for _ in 0..4 {
                assert!(reader.read().await.unwrap() == chunk);
            }
        };
        tokio::join!(write, read);
        (reader.wire_bytes(), writer.wire_bytes())
    };
    let (one, two) = tokio::join!(exchange(served.unwrap()), exchange(dialled.unwrap()));
    assert_eq!((one.0, one.1), (two.1, two.0));
}

#[tokio::test]
async fn another_authority_is_refused_and_both_ends_say_so() {
    let (listener, address) = listener().await;
    let (server, client) = (tls(&authority(), "db1", Kind::Node), tls(&authority(), "db2", Kind::Node));
    let serve = async { listener.accept().await.secure(&server).await };
    let (served, dialled) = tokio::join!(serve, dial(&address, &client));
    let (served, dialled) = (served.unwrap_err(), dialled.unwrap_err());
    assert_eq!(dialled.to_string(), "the peer's certificate was issued by another CA");
    assert_eq!(served.to_string(), "the peer does not accept this node's certificate: it trusts another CA");
    assert!(dialled.hint().unwrap().contains("ca.pem") && !dialled.is_gone());
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_in_words() {
    use tokio_rustls::rustls::pki_types::ServerName;
    let (listener, address) = listener().await;
    let server = tls(&authority(), "db1", Kind::Node);
    let serve = async { listener.accept().await.secure(&server).await };
    let connect = async {
        let config = crate::tls::for_postgres().unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let tcp = TcpStream::connect(&address).await.unwrap();
        let name = ServerName::try_from("node.walship").unwrap();
        // TLS 1.3: the client is through before the server has looked at its certificate.
        let mut stream = connector.connect(name, tcp).await.unwrap();
        stream.read_u8().await.unwrap_err()
    };
    let (served, refused) = tokio::join!(serve, connect);
    assert_eq!(served.unwrap_err().to_string(), "the peer showed no certificate");
    assert!(refused.to_string().contains("CertificateRequired"), "{refused}");
}

#[tokio::test]
async fn garbage_gets_one_clear_error() {
    for garbage in
        [&b"GET / HTTP/1.1\r\nHost: db1\r\n\r\n"[..], &[0; 5000], b"\x00\x00\x00\x08\x04\xd2\x16\x2f"]
    {
        let error = arrival_of(garbage).await;
        assert_eq!(error.to_string(), "the other end does not speak TLS");
        assert!(!error.is_gone());
    }
    assert!(arrival_of(b"").await.is_gone(), "a port scan");
    let cut_short = arrival_of(b"\x16\x03\x01\x02\x00\x01").await;
    assert!(cut_short.is_gone(), "{cut_short}");
}

#[tokio::test]
async fn a_stranger_that_says_nothing_does_not_keep_others_out() {
    let authority = authority();
    let (listener, address) = listener().await;
    let (server, client) = (tls(&authority, "db1", Kind::Node), tls(&authority, "db2", Kind::Node));
    let _stranger = TcpStream::connect(&address).await.unwrap();
    let silent = listener.accept().await;
    let server = &server;
    let serve = async { listener.accept().await.secure(server).await };
    let first = async { tokio::time::timeout(Duration::from_millis(50), silent.secure(server)).await };
    let (first, served, dialled) = tokio::join!(first, serve, dial(&address, &client));
    assert!(first.is_err(), "still waiting");
    assert!(served.is_ok() && dialled.is_ok());
}

#[tokio::test]
async fn plain_tcp_stays_within_the_host() {
    let (listener, address) = listener().await;
    let serve = async { listener.accept().await.secure(&Security::Plain).await };
    let (served, dialled) = tokio::join!(serve, dial(&address, &Security::Plain));
    assert!(served.unwrap().identity.is_none() && dialled.unwrap().identity.is_none());

    let elsewhere: SocketAddr = "192.0.2.1:7432".parse().unwrap();
    let tcp = TcpStream::connect(&address).await.unwrap();
    let error = socket::plain(tcp, elsewhere).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a connection without TLS is allowed only within a host, and 192.0.2.1:7432 is another one"
    );
}

#[tokio::test]
async fn addresses_that_lead_nowhere_are_named() {
    let (listener, address) = listener().await;
    let taken = Listener::bind(&address).await.unwrap_err();
    assert_eq!(taken.to_string(), format!("listen on {address}"));
    assert!(taken.hint().unwrap().contains("ss -ltnp"), "{taken}");
    let elsewhere = Listener::bind("192.0.2.1:7432").await.unwrap_err();
    assert!(elsewhere.hint().unwrap().contains("0.0.0.0"));
    drop(listener);
    let security = tls(&authority(), "db2", Kind::Node);
    let refused = dial(&address, &security).await.unwrap_err();
    assert_eq!(refused.to_string(), format!("connect to {address}"));
    assert!(refused.is_gone() && refused.hint().is_some());
    let unknown = dial("no-such-host.invalid:7432", &security).await.unwrap_err();
    assert_eq!(unknown.to_string(), "look up no-such-host.invalid:7432");
}
