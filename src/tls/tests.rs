//! Which files are accepted, and who may talk to whom.

use std::fs;

use super::*;

fn now() -> WallTime {
    WallTime::now()
}

fn later(days: i64) -> WallTime {
    WallTime { unix_micros: now().unix_micros + days * 86_400_000_000 }
}

fn credentials(authority: &Authority, name: &str, kind: Kind) -> Credentials {
    let issued = authority.issue(name, kind, now()).unwrap();
    let (certificate, key) = (Pem::new("node.pem", issued.certificate), Pem::new("node.key", issued.key));
    Credentials::from_pem(authority.certificate(), &certificate, &key, now()).unwrap()
}

/// A folder as `init` leaves it.
fn folder(authority: &Authority) -> (tempfile::TempDir, Files) {
    let folder = tempfile::tempdir().unwrap();
    let files = Files::in_folder(folder.path());
    let issued = authority.issue("db1", Kind::Node, now()).unwrap();
    fs::write(&files.ca, authority.certificate_pem()).unwrap();
    fs::write(&files.certificate, issued.certificate).unwrap();
    fs::write(&files.key, issued.key).unwrap();
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
    (folder, files)
}

fn error_of(files: &Files, now: WallTime) -> String {
    let error = Credentials::load(files, now).unwrap_err();
    assert!(error.hint().ends_with('.'), "{}", error.hint());
    error.to_string()
}

#[test]
fn a_certificate_says_who_it_is_for() {
    let authority = Authority::create("db1", now()).unwrap();
    for (name, kind) in [("db1", Kind::Node), ("rack-3_b", Kind::Node), ("0", Kind::Reader)] {
        let before = now();
        let credentials = credentials(&authority, name, kind);
        let identity = credentials.identity();
        assert_eq!((identity.name.as_str(), identity.kind), (name, kind));
        assert!(identity.serial >= before.unix_micros as u64);
        let days = identity.expires.seconds_since(now()) / 86_400.0;
        assert!((729.0..=730.1).contains(&days), "{days}");
        assert_eq!(credentials.acceptor().is_ok(), kind == Kind::Node);
    }
    assert!(matches!(authority.issue("Db.1", Kind::Node, now()), Err(TlsError::Name(_))));
}

#[test]
fn an_authority_survives_its_files() {
    let made = Authority::create("db1", now()).unwrap();
    let key = Pem::new("ca.key", made.key_pem());
    let read = Authority::from_pem(Pem::new("ca.pem", made.certificate_pem()), &key).unwrap();
    assert_eq!(credentials(&read, "db2", Kind::Node).identity().name, "db2");
}

#[test]
fn a_foreign_authority_may_have_a_subject_of_its_own() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CountryName, "DE");
    let printable = rcgen::DnValue::PrintableString("Crab Widgits".try_into().unwrap());
    params.distinguished_name.push(rcgen::DnType::OrganizationName, printable);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap().pem();
    let key = Pem::new("corp.key", key.serialize_pem());
    let authority = Authority::from_pem(Pem::new("corp.pem", certificate), &key).unwrap();
    assert_eq!(credentials(&authority, "db1", Kind::Node).identity().name, "db1");
}

#[test]
fn what_is_wrong_with_the_files_is_named() {
    let authority = Authority::create("db1", now()).unwrap();
    let other = Authority::create("db9", now()).unwrap();
    let (_folder, files) = folder(&authority);
    assert!(Credentials::load(&files, now()).is_ok());

    let (certificate, key) = (files.certificate.display(), files.key.display());
    let expired = error_of(&files, later(731));
    assert!(expired.starts_with(&format!("the certificate {certificate} expired at 20")), "{expired}");
    assert!(error_of(&files, later(-3)).contains("is not valid yet"));
    assert!(error_of(&files, later(3653)).contains("ca.pem expired at"));

    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(error_of(&files, now()), format!("the private key {key} can be read by others (mode 0640)"));
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();

    let strange = other.issue("db1", Kind::Node, now()).unwrap();
    let good = fs::read(&files.certificate).unwrap();
    fs::write(&files.certificate, &strange.certificate).unwrap();
    let ca = files.ca.display();
    assert_eq!(
        error_of(&files, now()),
        format!("the certificate {certificate} was not issued by the CA in {ca}")
    );

    let same = authority.issue("db1", Kind::Node, now()).unwrap();
    fs::write(&files.certificate, same.certificate).unwrap();
    let fits_not = format!("the private key {key} does not belong to the certificate {certificate}");
    assert_eq!(error_of(&files, now()), fits_not);
    fs::write(&files.certificate, good).unwrap();

    fs::write(&files.key, "secret").unwrap();
    assert!(error_of(&files, now()).starts_with(&format!("{key} holds no usable private key")));
    fs::write(&files.certificate, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert!(error_of(&files, now()).contains("node.pem does not identify a walship node"));
    fs::write(&files.certificate, "").unwrap();
    assert!(error_of(&files, now()).contains("there is none in it"));
    fs::remove_file(&files.ca).unwrap();
    let missing = Credentials::load(&files, now()).unwrap_err();
    assert_eq!(missing.to_string(), format!("read {ca}"));
    assert!(missing.hint().contains("walship init"));
}

/// Runs a handshake and one byte each way; what each end says when it fails.
async fn meet(server: &Credentials, client: &Credentials) -> Result<(Identity, Identity), (String, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (one, two) = tokio::io::duplex(1 << 16);
    let acceptor = server.acceptor().unwrap();
    let serve = async {
        let mut stream = acceptor.accept(one).await?;
        let identity = peer_identity(stream.get_ref().1.peer_certificates()).unwrap();
        stream.write_all(b"x").await?;
        stream.flush().await?;
        std::io::Result::Ok(identity)
    };
    let connect = async {
        let mut stream = client.connector().connect(server_name().unwrap(), two).await?;
        let identity = peer_identity(stream.get_ref().1.peer_certificates()).unwrap();
        stream.read_u8().await?;
        std::io::Result::Ok(identity)
    };
    let words = |e: std::io::Error| match e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(e) => explain(e).0,
        None => e.to_string(),
    };
    match tokio::join!(serve, connect) {
        (Ok(client), Ok(server)) => Ok((server, client)),
        (server, client) => Err((
            server.map_err(words).err().unwrap_or_default(),
            client.map_err(words).err().unwrap_or_default(),
        )),
    }
}

#[tokio::test]
async fn both_ends_know_who_is_there() {
    let authority = Authority::create("db1", now()).unwrap();
    let (node, reader) =
        (credentials(&authority, "db1", Kind::Node), credentials(&authority, "r", Kind::Reader));
    let (server, client) = meet(&node, &reader).await.unwrap();
    assert_eq!((server.name.as_str(), server.kind), ("db1", Kind::Node));
    assert_eq!((client.name.as_str(), client.kind), ("r", Kind::Reader));
}

#[tokio::test]
async fn another_authority_is_refused_at_both_ends() {
    let one = credentials(&Authority::create("db1", now()).unwrap(), "db1", Kind::Node);
    let two = credentials(&Authority::create("db2", now()).unwrap(), "db2", Kind::Node);
    let (server, client) = meet(&one, &two).await.unwrap_err();
    assert_eq!(client, "the peer's certificate was issued by another CA");
    assert_eq!(server, "the peer does not accept this node's certificate: it trusts another CA");
}

#[tokio::test]
async fn a_readers_certificate_cannot_serve_even_if_it_tries() {
    let authority = Authority::create("db1", now()).unwrap();
    let node = credentials(&authority, "db2", Kind::Node);
    // A server made by force from a reader's certificate.
    let issued = authority.issue("r", Kind::Reader, now()).unwrap();
    let (certificate, key) = (Pem::new("c", issued.certificate), Pem::new("k", issued.key));
    let mut reader = Credentials::from_pem(authority.certificate(), &certificate, &key, now()).unwrap();
    let certified =
        CertifiedKey::from_der(certificate.certificates().unwrap(), key.key().unwrap(), &provider()).unwrap();
    let (roots, _) = trusted_roots(authority.certificate(), now()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build().unwrap();
    reader.server = Some(Arc::new(server_config(verifier, Arc::new(certified.into())).unwrap()));
    let (_, client) = meet(&reader, &node).await.unwrap_err();
    assert_eq!(client, "the peer's certificate is not a node's, so it cannot serve");
}
