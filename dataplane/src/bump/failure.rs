//! Why a handshake with a site failed, in words for people.

use std::fmt;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible, PeerMisbehaved};

use super::tls::ENDED;

/// Why a handshake with a site that asks for a client certificate fails.
pub(crate) const CLIENT_CERTIFICATE: &str = "the site asks for a client certificate";

/// A fault that is not mirrored, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defect(pub String);

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Defect {}

/// Which check failed, as a sentence without its full stop.
pub fn failed(error: &Error) -> String {
    let fixed = match error {
        Error::InvalidCertificate(certificate) => return of_certificate(certificate),
        Error::General(text) if text == CLIENT_CERTIFICATE => CLIENT_CERTIFICATE,
        Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => CLIENT_CERTIFICATE,
        Error::AlertReceived(AlertDescription::NoApplicationProtocol)
        | Error::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedApplicationProtocol) => {
            "the site does not agree to HTTP/1.1 (ALPN)"
        }
        Error::AlertReceived(AlertDescription::ProtocolVersion)
        | Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13) => {
            "the site speaks neither TLS 1.2 nor TLS 1.3"
        }
        Error::AlertReceived(AlertDescription::HandshakeFailure) => {
            "the site ended the handshake: it shares no cipher suite or no TLS version with us"
        }
        Error::AlertReceived(AlertDescription::UnrecognisedName) => {
            "the site does not know the name that was asked for"
        }
        Error::AlertReceived(alert) => return format!("the site sent the alert {alert:?}"),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => "what the site sent is no TLS",
        Error::InvalidMessage(why) => return format!("the site's TLS cannot be read ({why:?})"),
        Error::PeerIncompatible(why) => return format!("the site's TLS does not fit ours ({why:?})"),
        Error::PeerMisbehaved(why) => return format!("the site broke the rules of TLS ({why:?})"),
        other => return format!("TLS with the site failed: {other}"),
    };
    fixed.to_owned()
}

/// It says nothing of what the site can do: the next handshake may succeed.
pub fn is_passing(error: &Error) -> bool {
    matches!(
        error,
        Error::AlertReceived(AlertDescription::InternalError | AlertDescription::UserCanceled)
    ) || matches!(error, Error::General(text) if text == ENDED)
}

#[allow(deprecated, reason = "both forms still occur")]
fn of_certificate(error: &CertificateError) -> String {
    let fixed = match error {
        CertificateError::BadEncoding => "the site's certificate cannot be read",
        CertificateError::BadSignature => "a signature by the site, or in its certificates, is wrong",
        // Of the leaf itself both are mirrored.
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "a certificate above the site's has expired"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "a certificate above the site's is not valid yet"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the site's certificate is not for servers (extended key usage)"
        }
        CertificateError::UnsupportedSignatureAlgorithm
        | CertificateError::UnsupportedSignatureAlgorithmContext { .. } => {
            "the site's certificates are signed with an algorithm that is unknown or too weak"
        }
        CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "the site's certificates are not signed by whom they name: that key is of another kind"
        }
        CertificateError::Other(why) => match why.0.downcast_ref::<Defect>() {
            Some(Defect(text)) => return text.clone(),
            None => return format!("the site's certificate is not acceptable: {why}"),
        },
        other => return format!("the site's certificate is not acceptable: {other}"),
    };
    fixed.to_owned()
}
