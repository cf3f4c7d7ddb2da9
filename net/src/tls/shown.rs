//! What a certificate says: one credential among its names, and from when to when it counts.

use super::now_seconds;
use muster_core::service::Credential;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// What a certificate that was shown says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Who its holder is.
    pub credential: Credential,
    /// From when it counts, in seconds since the Unix epoch.
    pub not_before: u64,
    /// Until when it counts, in seconds since the Unix epoch.
    pub not_after: u64,
    /// Its serial number, in hexadecimal.
    pub serial: String,
}

/// Parses DER.
pub(crate) fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => Ok(parsed),
        Err(error) => Err(format!("it is no X.509 certificate: {error}")),
    }
}

fn seconds(time: i64) -> u64 {
    u64::try_from(time).unwrap_or(0)
}

/// When a certificate ends.
pub(crate) fn expires(certificate: &CertificateDer<'_>) -> Result<u64, String> {
    Ok(seconds(parse(certificate)?.validity().not_after.timestamp()))
}

impl Shown {
    /// Reads a certificate.
    ///
    /// # Errors
    /// What is wrong with it, if it does not say who its holder is.
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let parsed = parse(certificate)?;
        let names = parsed.subject_alternative_name().map_err(|error| format!("its names cannot be read: {error}"))?;
        let uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with("muster:") => Some(*uri),
            _ => None,
        });
        let uris: Vec<&str> = uris.collect();
        let [uri] = uris[..] else {
            return Err(format!(
                "it has {} muster:// URIs among its subject alternative names: expected exactly one, as `muster certs issue` makes",
                uris.len()
            ));
        };
        Ok(Self {
            credential: uri.parse().map_err(|error: muster_core::service::CredentialError| error.problem)?,
            not_before: seconds(parsed.validity().not_before.timestamp()),
            not_after: seconds(parsed.validity().not_after.timestamp()),
            serial: parsed.raw_serial_as_string(),
        })
    }

    /// Whether it counts no more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        now_seconds() >= self.not_after
    }
}

/// How long a moment is past, for people.
pub(crate) fn ago(moment: u64) -> String {
    let seconds = now_seconds().saturating_sub(moment);
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} minutes ago", seconds / 60),
        7_200..172_800 => format!("{} hours ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}
