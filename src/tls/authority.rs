//! The cluster's private CA: made by `init`, used by `init` and `invite`.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::{Decode, Tag, Tagged};
use x509_cert::ext::pkix::SubjectKeyIdentifier;

use super::identity::check_name;
use super::{Credentials, Kind, Pem, TlsError};
use crate::clock::WallTime;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_LIFE: Duration = Duration::from_secs(3652 * DAY.as_secs());
const LEAF_LIFE: Duration = Duration::from_secs(730 * DAY.as_secs());

/// Hosts' clocks differ: a certificate is valid from so long before it is made.
const BACKDATED: Duration = DAY;

/// A CA with its private key.
pub struct Authority {
    certificate: Pem,
    key: KeyPair,
    subject: DistinguishedName,
    key_identifier: KeyIdMethod,
}

/// A certificate with its private key, in PEM.
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// The private key, PKCS #8.
    pub key: String,
}

impl Authority {
    /// A new CA. `name` is for people who look at the certificate.
    pub fn create(name: &str, now: WallTime) -> Result<Authority, TlsError> {
        let key = KeyPair::generate().map_err(TlsError::making)?;
        let mut subject = DistinguishedName::new();
        // The time makes the subject unique, so that a peer with another CA hears "unknown issuer", and not "bad
        // signature".
        subject.push(DnType::CommonName, format!("walship CA of {name}, {}", now.unix_micros));
        let mut params = validity(now, CA_LIFE);
        params.serial_number = Some(serial(now));
        params.distinguished_name = subject.clone();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(TlsError::making)?;
        let certificate = Pem::new("the new CA certificate", certificate.pem());
        Ok(Authority { certificate, key, subject, key_identifier: params.key_identifier_method })
    }

    /// A CA that exists already, ours or anyone's.
    pub fn from_pem(certificate: Pem, key: &Pem) -> Result<Authority, TlsError> {
        let wrong = |reason: String| TlsError::NotPem {
            origin: certificate.origin.clone(),
            what: "CA certificate",
            reason,
        };
        let der: CertificateDer<'static> = certificate.certificates()?.swap_remove(0);
        let parsed = Certificate::from_der(&der).map_err(|e| wrong(e.to_string()))?;
        let subject = subject_of(&parsed).map_err(wrong)?;
        let key_identifier = match parsed.tbs_certificate.get::<SubjectKeyIdentifier>() {
            Ok(Some((_, identifier))) => KeyIdMethod::PreSpecified(identifier.0.as_bytes().to_vec()),
            _ => KeyIdMethod::Sha256,
        };
        let origin = key.origin.clone();
        let key = KeyPair::try_from(&key.key()?).map_err(|e| TlsError::NotPem {
            origin: origin.clone(),
            what: "CA key",
            reason: e.to_string(),
        })?;
        let certified = parsed.tbs_certificate.subject_public_key_info.subject_public_key.raw_bytes();
        if certified != key.public_key_raw() {
            return Err(TlsError::KeyMismatch { certificate: certificate.origin, key: origin });
        }
        Ok(Authority { certificate, key, subject, key_identifier })
    }

    /// The CA's certificate, as it was read or made.
    pub fn certificate(&self) -> &Pem {
        &self.certificate
    }

    /// The CA's certificate in PEM.
    pub fn certificate_pem(&self) -> String {
        String::from_utf8_lossy(&self.certificate.text).into_owned()
    }

    /// The CA's private key in PEM.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Makes a key and a certificate for it.
    pub fn issue(&self, name: &str, kind: Kind, now: WallTime) -> Result<Issued, TlsError> {
        check_name(name)?;
        let key = KeyPair::generate().map_err(TlsError::making)?;
        let mut params = validity(now, LEAF_LIFE);
        params.serial_number = Some(serial(now));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("walship {kind} {name}"));
        for dns in kind.dns_names(name) {
            params.subject_alt_names.push(SanType::DnsName(dns.try_into().map_err(TlsError::making)?));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match kind {
            Kind::Node => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Kind::Reader => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer()).map_err(TlsError::making)?;
        Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Checks a certificate just issued as its holder will. Finds a CA that is none, or has expired.
    pub fn check(&self, issued: &Issued, now: WallTime) -> Result<Credentials, TlsError> {
        let certificate = Pem::new("that was just made", issued.certificate.as_str());
        let key = Pem::new("that was just made", issued.key.as_str());
        Credentials::from_pem(&self.certificate, &certificate, &key, now)
    }

    fn issuer(&self) -> Issuer<'static, &KeyPair> {
        let mut params = CertificateParams::default();
        params.distinguished_name = self.subject.clone();
        params.key_identifier_method = self.key_identifier.clone();
        Issuer::new(params, &self.key)
    }
}

fn validity(now: WallTime, life: Duration) -> CertificateParams {
    let seconds = Duration::from_secs(u64::try_from(now.unix_seconds()).unwrap_or(0));
    let now = rcgen::date_time_ymd(1970, 1, 1) + seconds;
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = (now - BACKDATED, now + life);
    params
}

fn serial(now: WallTime) -> SerialNumber {
    SerialNumber::from(u64::try_from(now.unix_micros).unwrap_or(0))
}

/// The subject of a CA, such that what is written as the issuer of a leaf has the same bytes.
fn subject_of(certificate: &Certificate) -> Result<DistinguishedName, String> {
    let mut subject = DistinguishedName::new();
    for part in &certificate.tbs_certificate.subject.0 {
        let mut attributes = part.0.iter();
        let (Some(attribute), None) = (attributes.next(), attributes.next()) else {
            return Err("a part of its subject has several values".to_owned());
        };
        let oid: Vec<u64> = attribute.oid.arcs().map(u64::from).collect();
        let text = String::from_utf8_lossy(attribute.value.value()).into_owned();
        let value = match attribute.value.tag() {
            Tag::Utf8String => Some(DnValue::Utf8String(text)),
            Tag::PrintableString => text.try_into().ok().map(DnValue::PrintableString),
            Tag::Ia5String => text.try_into().ok().map(DnValue::Ia5String),
            _ => None,
        };
        let kind = DnType::from_oid(&oid);
        if subject.get(&kind).is_some() {
            return Err(format!("its subject has {} twice", attribute.oid));
        }
        subject.push(kind, value.ok_or_else(|| format!("its subject has an unusual {}", attribute.oid))?);
    }
    Ok(subject)
}
