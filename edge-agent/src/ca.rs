//! The appliance is its own certificate authority (D7): an authority for 10 years, leaves for 1 year, renewed when a
//! third of their life is left or their names differ. Guests trust the authority only. All are valid from a day before
//! a time that has certainly passed, so that one that was issued while the clock ran ahead outlives its being set.
//!
//! A leaf is one file with certificate, authority and key, so that no kill can leave a pair that does not match.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use crate::clock::{Behind, Clock};
use crate::durable;

const AUTHORITY_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 365;
/// Seconds.
const DAY: i64 = 86_400;

/// A certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] durable::Error),
    /// The authority's files are damaged.
    #[error("{} and its key do not belong together or are damaged", path.display())]
    Damaged {
        /// The certificate.
        path: PathBuf,
        /// Why.
        source: rcgen::Error,
    },
    /// The authority's key is gone.
    #[error("{} is there, but its key is not", path.display())]
    KeyLost {
        /// The certificate.
        path: PathBuf,
    },
    /// None is issued under an impossible clock.
    #[error(transparent)]
    Clock(#[from] Behind),
    /// A certificate could not be issued.
    #[error("issue a certificate for {name}")]
    Issue {
        /// For what.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
}

/// The authority.
pub struct Authority<'a> {
    clock: &'a Clock,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A leaf: server certificate with its key.
#[derive(Clone, Eq, PartialEq)]
pub struct Leaf {
    /// Certificate, PEM.
    pub certificate: String,
    /// Private key, PEM.
    pub key: String,
}

impl<'a> Authority<'a> {
    /// The authority in `folder`, made where there is none.
    pub fn ensure(folder: &Path, common_name: &str, clock: &'a Clock) -> Result<Self, Error> {
        let (path, key_path) = (folder.join("ca.crt"), folder.join("ca.key"));
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if let Some(certificate) = durable::read(&path, 1 << 16)?.map(text) {
            let key = durable::read(&key_path, 1 << 16)?.map(text).ok_or(Error::KeyLost { path: path.clone() })?;
            let damaged = |source| Error::Damaged { path: path.clone(), source };
            let key = KeyPair::from_pem(&key).map_err(damaged)?;
            let issuer = Issuer::from_ca_cert_pem(&certificate, key).map_err(damaged)?;
            return Ok(Self { clock, certificate, issuer });
        }
        let issue = |source| Error::Issue { name: common_name.to_owned(), source };
        let key = KeyPair::generate().map_err(issue)?;
        let mut params = params(common_name, AUTHORITY_DAYS, clock)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(issue)?.pem();
        // The key first: a certificate without its key would be an error, a key without certificate is nothing.
        durable::write(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
        durable::write(&path, certificate.as_bytes(), 0o600)?;
        Ok(Self { clock, certificate, issuer: Issuer::new(params, key) })
    }

    /// Its certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The leaf `<folder>/<name>.pem` for these DNS names and addresses, issued anew where it is due.
    pub fn ensure_leaf(&self, folder: &Path, name: &str, names: &[String]) -> Result<Leaf, Error> {
        let path = folder.join(format!("{name}.pem"));
        if let Some(text) = durable::read(&path, 1 << 16)?
            && let Some(leaf) = self.usable(&String::from_utf8_lossy(&text), names, self.clock.now()?)
        {
            return Ok(leaf);
        }
        let leaf = self.issue(name, names, LEAF_DAYS)?;
        let text = format!("{}{}{}", leaf.certificate, self.certificate, leaf.key);
        durable::write(&path, text.as_bytes(), 0o600)?;
        Ok(leaf)
    }

    fn issue(&self, name: &str, names: &[String], days: i64) -> Result<Leaf, Error> {
        let issue = |source| Error::Issue { name: name.to_owned(), source };
        let key = KeyPair::generate().map_err(issue)?;
        let with_names = CertificateParams::new(names.to_vec()).map_err(issue)?;
        let mut params = params(name, days, self.clock)?;
        params.subject_alt_names = with_names.subject_alt_names;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).map_err(issue)?;
        Ok(Leaf { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// The leaf in this text, where it is of this authority, has exactly these names, and has a third of its life left.
    fn usable(&self, text: &str, names: &[String], now: Timestamp) -> Option<Leaf> {
        let rest = text.find("-----BEGIN").map(|at| &text[at..])?;
        let (certificate, rest) = rest.split_at(rest.find("-----END CERTIFICATE-----")? + 26);
        let key = rest.strip_prefix(self.certificate.as_str())?;
        let (_, pem) = parse_x509_pem(certificate.as_bytes()).ok()?;
        let parsed = pem.parse_x509().ok()?;
        let left = parsed.validity().not_after.timestamp() - now.as_second();
        // One that lasts longer than any was issued while the clock ran ahead.
        if !(LEAF_DAYS * DAY / 3..=LEAF_DAYS * DAY).contains(&left) {
            return None;
        }
        let mut found: Vec<String> =
            parsed.subject_alternative_name().ok()??.value.general_names.iter().filter_map(shown).collect();
        let mut wanted = names.to_vec();
        found.sort();
        wanted.sort();
        let usable = found == wanted && KeyPair::from_pem(key).is_ok();
        usable.then(|| Leaf { certificate: certificate.to_owned(), key: key.to_owned() })
    }
}

/// Whether a certificate of somebody else's is to be renewed: it cannot be read, is not valid yet, or ends within a
/// third of a year.
pub fn is_due(pem: &[u8], now: Timestamp) -> bool {
    let validity = parse_x509_pem(pem).ok().and_then(|(_, pem)| {
        let validity = pem.parse_x509().ok()?.validity().clone();
        Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
    });
    // By its end alone: kubeadm's leaves begin with their authority, whenever they are issued.
    validity.is_none_or(|(from, until)| now.as_second() < from || until - now.as_second() < LEAF_DAYS * DAY / 3)
}

fn shown(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
        },
        _ => None,
    }
}

fn params(common_name: &str, days: i64, clock: &Clock) -> Result<CertificateParams, Behind> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let day = |time: Timestamp, days: i64| {
        OffsetDateTime::from_unix_timestamp(time.as_second() + days * DAY).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    };
    let now = clock.now()?;
    // A guest's clock may be behind.
    params.not_before = day(now.min(clock.floor()), -1);
    params.not_after = day(now, days);
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::tests::saying;

    fn clock(folder: &Path) -> Clock {
        saying(folder, Timestamp::now)
    }

    fn names() -> Vec<String> {
        ["registry.pcg-edge.internal", "127.0.0.1"].map(str::to_owned).to_vec()
    }

    #[test]
    fn authority_and_leaf_are_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let clock = clock(folder.path());
        let first = Authority::ensure(folder.path(), "PCG-Edge edge", &clock).unwrap();
        let leaf = first.ensure_leaf(folder.path(), "registry", &names()).unwrap();
        let second = Authority::ensure(folder.path(), "PCG-Edge edge", &clock).unwrap();
        assert_eq!(first.certificate(), second.certificate());
        assert!(second.ensure_leaf(folder.path(), "registry", &names()).unwrap() == leaf);
    }

    #[test]
    fn a_leaf_is_renewed_for_other_names_another_authority_or_age() {
        let folder = tempfile::tempdir().unwrap();
        let clock = clock(folder.path());
        let authority = Authority::ensure(folder.path(), "a", &clock).unwrap();
        let leaf = authority.issue("registry", &names(), LEAF_DAYS).unwrap();
        let text = format!("{}{}{}", leaf.certificate, authority.certificate, leaf.key);
        let now = Timestamp::now();
        let in_days = |days: i64| Timestamp::from_second(now.as_second() + days * 86_400).unwrap();
        assert!(authority.usable(&text, &names(), now).is_some());
        assert!(authority.usable(&text, &names(), in_days(243)).is_some());
        assert!(authority.usable(&text, &names(), in_days(244)).is_none(), "a third is left");
        assert!(authority.usable(&text, &names(), in_days(-1)).is_none(), "of a clock that ran ahead");
        assert!(authority.usable(&text, &names()[..1], now).is_none(), "other names");
        let other = tempfile::tempdir().unwrap();
        let other = Authority::ensure(other.path(), "a", &clock).unwrap();
        assert!(other.usable(&text, &names(), now).is_none(), "another authority");
        assert!(authority.usable("", &names(), now).is_none());
        assert!(authority.usable(&text[..text.len() / 2], &names(), now).is_none());
    }

    #[test]
    fn thirteen_months_later_the_leaf_is_another_and_the_authority_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let ensure = |now: fn() -> Timestamp| {
            let clock = saying(folder.path(), now);
            let authority = Authority::ensure(folder.path(), "a", &clock)?;
            Ok::<_, Error>((authority.certificate().to_owned(), authority.ensure_leaf(folder.path(), "r", &names())?))
        };
        let (authority, leaf) = ensure(|| "2027-01-01T00:00:00Z".parse().unwrap()).unwrap();
        let (later, renewed) = ensure(|| "2028-02-01T00:00:00Z".parse().unwrap()).unwrap();
        assert!(later == authority && renewed != leaf);
        // Neither is issued by a clock that cannot be right, nor is what it would issue found.
        assert!(matches!(ensure(|| Timestamp::UNIX_EPOCH), Err(Error::Clock(_))));
        let (_, kept) = ensure(|| "2028-02-01T00:00:00Z".parse().unwrap()).unwrap();
        assert!(kept == renewed);
    }

    #[test]
    fn a_foreign_certificate_is_due_before_its_end_and_before_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let clock = clock(folder.path());
        let authority = Authority::ensure(folder.path(), "a", &clock).unwrap();
        let leaf = authority.issue("apiserver", &names(), LEAF_DAYS).unwrap().certificate;
        let due = |days: i64| {
            is_due(leaf.as_bytes(), Timestamp::from_second(Timestamp::now().as_second() + days * DAY).unwrap())
        };
        assert!(!due(0) && !due(243) && due(244) && due(400));
        assert!(due(-10_000), "not valid yet");
        assert!(is_due(b"torn", Timestamp::now()));
    }

    /// The clock ran a year ahead while all was made, and was set: what was made is valid, and made anew all the same.
    #[test]
    fn a_clock_that_ran_ahead_leaves_nothing_that_is_not_yet_valid() {
        let folder = tempfile::tempdir().unwrap();
        let ahead = saying(folder.path(), || "2028-01-01T00:00:00Z".parse().unwrap());
        let authority = Authority::ensure(folder.path(), "a", &ahead).unwrap();
        let early = authority.ensure_leaf(folder.path(), "r", &names()).unwrap();
        for pem in [authority.certificate(), early.certificate.as_str()] {
            let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
            let from = pem.parse_x509().unwrap().validity().not_before.timestamp();
            assert!(from < "2027-01-01T00:00:00Z".parse::<Timestamp>().unwrap().as_second());
        }
        let set = saying(folder.path(), || "2027-01-01T00:00:00Z".parse().unwrap());
        let authority = Authority::ensure(folder.path(), "a", &set).unwrap();
        assert!(authority.ensure_leaf(folder.path(), "r", &names()).unwrap() != early);
    }

    #[test]
    fn a_client_that_trusts_the_authority_trusts_the_leaf() {
        use rustls::client::danger::ServerCertVerifier;
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
        let folder = tempfile::tempdir().unwrap();
        let clock = clock(folder.path());
        let authority = Authority::ensure(folder.path(), "a", &clock).unwrap();
        let leaf = authority.ensure_leaf(folder.path(), "registry", &names()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.certificate().as_bytes()).unwrap()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        let certificate = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
        let verify = |name: &str| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            verifier.verify_server_cert(&certificate, &[], &name, &[], UnixTime::now()).is_ok()
        };
        assert!(verify("127.0.0.1") && verify("registry.pcg-edge.internal"));
        assert!(!verify("example.org"));
    }
}
