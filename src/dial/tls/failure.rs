//! How a handshake fails: what is told of it, and whether dialing again may help.

use std::io;
use std::net::SocketAddr;

use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{AlertDescription, Error};

use crate::address::Address;
use crate::error::DialError;

/// A TLS handshake that failed. Found in a [`DialError`] with [`get_ref`](DialError::get_ref).
///
/// # Examples
///
/// ```
/// use fdpool::dial::tls::{HandshakeError, rustls};
/// use fdpool::{DialError, GetError};
///
/// /// Whether the peer is not the one it should be.
/// fn is_an_impostor(error: &GetError) -> bool {
///     let GetError::Dial { source, .. } = error else { return false };
///     let failure = source.get_ref().downcast_ref::<HandshakeError>();
///     matches!(failure.and_then(HandshakeError::tls_error), Some(rustls::Error::InvalidCertificate(_)))
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("TLS handshake with {peer} as {name:?} failed: {source}")]
pub struct HandshakeError {
    peer: String,
    name: String,
    source: io::Error,
}

impl HandshakeError {
    pub(super) fn new(
        peer: Option<SocketAddr>,
        address: &Address,
        name: &ServerName<'_>,
        source: io::Error,
    ) -> Self {
        // By way of a proxy, the socket's peer is that.
        let peer = match peer.map(|peer| peer.to_string()) {
            Some(peer) if peer != address.as_str() => format!("{address} (at {peer})"),
            _ => address.to_string(),
        };
        Self { peer, name: name.to_str().into_owned(), source }
    }

    /// What rustls says, if it was TLS that failed: a certificate that is not good, an alert of the peer. `None`
    /// if it was the connection: a reset, an end of file.
    pub fn tls_error(&self) -> Option<&Error> {
        self.source.get_ref()?.downcast_ref()
    }

    /// The name that the peer had to prove.
    pub fn server_name(&self) -> &str {
        &self.name
    }

    pub(super) fn into_dial_error(self) -> DialError {
        let permanent = self.tls_error().is_some_and(is_permanent);
        let error = DialError::new(self);
        if permanent { error.permanent() } else { error }
    }
}

/// Whether it takes another configuration, of this side or of the peer, to mend it. What a peer that restarts,
/// or something on the way, may also cause is not.
fn is_permanent(error: &Error) -> bool {
    match error {
        Error::InvalidCertificate(_)
        | Error::InvalidCertRevocationList(_)
        | Error::NoCertificatesPresented
        | Error::UnsupportedNameType
        | Error::PeerIncompatible(_)
        | Error::NoApplicationProtocol
        | Error::InvalidEncryptedClientHello(_)
        | Error::InconsistentKeys(_)
        | Error::BadMaxFragmentSize => true,
        Error::AlertReceived(alert) => refuses_us(*alert),
        _ => false,
    }
}

/// Whether the peer refuses who we are, or what we can do.
fn refuses_us(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::HandshakeFailure
            | Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::ProtocolVersion
            | Alert::InsufficientSecurity
            | Alert::InappropriateFallback
            | Alert::MissingExtension
            | Alert::UnsupportedExtension
            | Alert::UnrecognisedName
            | Alert::NoApplicationProtocol
            | Alert::EncryptedClientHelloRequired
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_rustls::rustls::{CertificateError, InvalidMessage};

    #[test]
    fn refusals_are_permanent_and_accidents_are_not() {
        for error in [
            Error::InvalidCertificate(CertificateError::Revoked),
            Error::AlertReceived(AlertDescription::UnknownCA),
            Error::NoApplicationProtocol,
        ] {
            assert!(is_permanent(&error), "{error}");
        }
        for error in [
            Error::InvalidMessage(InvalidMessage::InvalidContentType),
            Error::AlertReceived(AlertDescription::InternalError),
            Error::DecryptError,
        ] {
            assert!(!is_permanent(&error), "{error}");
        }
    }

    #[test]
    fn an_error_tells_its_peer_its_name_and_its_cause() {
        let error = |source| {
            let name = ServerName::try_from("example.org").unwrap();
            HandshakeError::new(None, &Address::from("10.0.0.1:443"), &name, source).into_dial_error()
        };
        let reset = error(io::ErrorKind::ConnectionReset.into());
        assert_eq!(reset.io_kind(), Some(io::ErrorKind::ConnectionReset));
        assert!(!reset.is_permanent());
        let text = reset.to_string();
        assert!(
            ["10.0.0.1:443", "example.org", "handshake"].iter().all(|part| text.contains(part)),
            "{text}"
        );
        let revoked = Error::InvalidCertificate(CertificateError::Revoked);
        let revoked = error(io::Error::new(io::ErrorKind::InvalidData, revoked));
        assert!(revoked.is_permanent() && revoked.to_string().contains("Revoked"), "{revoked}");
        let failure = revoked.get_ref().downcast_ref::<HandshakeError>().unwrap();
        assert!(failure.tls_error().is_some() && failure.server_name() == "example.org");
    }
}
