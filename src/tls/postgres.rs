//! TLS towards PostgreSQL as libpq's `sslmode=prefer` and `require` have it: encrypted, the certificate unchecked.

use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::{TlsError, provider};

/// A configuration that encrypts without checking who the server is. TLS 1.2 is allowed, as PostgreSQL does.
pub fn for_postgres() -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let verifier = Arc::new(AnyCertificate(provider.clone()));
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Configuration)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

/// Accepts any certificate. Signatures are checked all the same: the server must own the key that it shows, on
/// which SCRAM's channel binding rests.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::rustls::{ServerConfig, pki_types::PrivateKeyDer, version};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    #[tokio::test]
    async fn any_certificate_will_do_with_either_version_of_tls() {
        for version in [&version::TLS12, &version::TLS13] {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let server = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[version])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], key)
                .unwrap();
            let (one, two) = tokio::io::duplex(1 << 16);
            let serve = async {
                let mut stream = TlsAcceptor::from(Arc::new(server)).accept(one).await.unwrap();
                stream.write_all(b"x").await.unwrap();
                stream.flush().await.unwrap();
                stream
            };
            let connect = async {
                let connector = TlsConnector::from(Arc::new(for_postgres().unwrap()));
                let name = ServerName::try_from("db1.example").unwrap();
                connector.connect(name, two).await.unwrap().read_u8().await.unwrap()
            };
            assert_eq!(tokio::join!(serve, connect).1, b'x');
        }
    }
}
