//! What a broken connection means, in words. Transports wrap errors in errors; TLS's own are found and translated.

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};
use std::error::Error as StdError;
use std::io;

/// Why a connection failed.
pub(crate) struct Told {
    /// In words.
    pub(crate) problem: String,
    /// Whether one end refused the other's certificate: trying again changes nothing.
    pub(crate) denied: bool,
}

/// The errors inside one another, outermost first.
fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        // What an I/O error was made of is not among its sources.
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inside {
            Some(inside) => Some(inside as &(dyn StdError + 'static)),
            None => error.source(),
        };
        Some(error)
    })
}

/// The innermost reason: transport errors say little themselves.
pub(crate) fn root_cause(error: &(dyn StdError + 'static)) -> String {
    explain(error).problem
}

/// Why a connection failed.
pub(crate) fn explain(error: &(dyn StdError + 'static)) -> Told {
    let mut last = error;
    for error in chain(error) {
        if let Some(error) = error.downcast_ref::<Error>() {
            return words(error);
        }
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::PermissionDenied
            && error.get_ref().is_some()
        {
            return Told { problem: error.to_string(), denied: true };
        }
        last = error;
    }
    let text = last.to_string();
    // HTTP/2 keeps only the words of what broke its connection.
    match text.strip_prefix("received fatal alert: ").and_then(alert_of) {
        Some(alert) => words(&Error::AlertReceived(alert)),
        None => Told { problem: text, denied: false },
    }
}

/// The alerts that are about certificates, by the names they are printed with.
fn alert_of(name: &str) -> Option<AlertDescription> {
    use AlertDescription as A;
    [
        A::CertificateRequired,
        A::CertificateExpired,
        A::UnknownCA,
        A::CertificateUnknown,
        A::UnsupportedCertificate,
        A::BadCertificate,
        A::DecryptError,
        A::AccessDenied,
    ]
    .into_iter()
    .find(|alert| format!("{alert:?}") == name)
}

fn words(error: &Error) -> Told {
    let denied = |problem: &str| Told { problem: problem.to_owned(), denied: true };
    match error {
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => denied("it wants a certificate, and none was shown"),
            AlertDescription::CertificateExpired => denied("it refuses our certificate: expired, or not in force yet"),
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                denied("it refuses our certificate: its CA did not sign it")
            }
            AlertDescription::CertificateUnknown => {
                denied("it refuses our certificate: it is of another cluster, or of a role that this port is not for")
            }
            AlertDescription::UnsupportedCertificate => {
                denied("it refuses our certificate: it is not made for this end of a connection")
            }
            AlertDescription::BadCertificate | AlertDescription::AccessDenied => {
                denied("it refuses our certificate: see the server's log")
            }
            alert => Told { problem: format!("it ended the TLS handshake: {alert:?}"), denied: false },
        },
        Error::InvalidCertificate(problem) => match problem {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                denied("its certificate has expired")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                denied("its certificate is not in force yet: compare the clocks")
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                denied("its certificate is not of our CA")
            }
            CertificateError::Other(why) => denied(&format!("its certificate is refused: {}", why.0)),
            other => denied(&format!("its certificate is refused: {other}")),
        },
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            Told { problem: "it does not speak TLS there".to_owned(), denied: false }
        }
        other => Told { problem: other.to_string(), denied: false },
    }
}

/// Why a caller was refused, for the server's log.
pub(crate) fn of_caller(error: &(dyn StdError + 'static)) -> String {
    for error in chain(error) {
        match error.downcast_ref::<Error>() {
            Some(Error::NoCertificatesPresented) => return "it showed no certificate".to_owned(),
            Some(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
                return "its certificate is not of our CA".to_owned();
            }
            Some(Error::AlertReceived(alert)) => return format!("it refuses our certificate: {alert:?}"),
            Some(other) => return words(other).problem,
            None => {}
        }
    }
    root_cause(error)
}
