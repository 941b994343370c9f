//! The name a peer has to prove: given, or the host part of an address. Pure.

use std::net::IpAddr;

use tokio_rustls::rustls::pki_types::ServerName;

use crate::error::DialError;

/// The name that a peer's certificate has to prove: a DNS name, which is also sent to it (SNI), or an IP address.
///
/// Made of a string or of a [`ServerName`]. A string that cannot be one fails the dials.
#[derive(Clone, Debug)]
pub struct PeerName(Result<ServerName<'static>, String>);

impl From<ServerName<'static>> for PeerName {
    fn from(name: ServerName<'static>) -> Self {
        Self(Ok(name))
    }
}

impl From<IpAddr> for PeerName {
    fn from(ip: IpAddr) -> Self {
        ServerName::from(ip).into()
    }
}

impl From<&str> for PeerName {
    fn from(name: &str) -> Self {
        Self(parsed(name))
    }
}

impl From<&String> for PeerName {
    fn from(name: &String) -> Self {
        name.as_str().into()
    }
}

impl From<String> for PeerName {
    fn from(name: String) -> Self {
        name.as_str().into()
    }
}

impl PeerName {
    pub(super) fn resolved(&self) -> Result<ServerName<'static>, DialError> {
        self.0
            .clone()
            .map_err(|name| DialError::new(format!("{name:?} cannot be a TLS server name")).permanent())
    }
}

/// The host part of an address.
pub(super) fn of_address(address: &str) -> Result<ServerName<'static>, DialError> {
    parsed(host(address)).map_err(|host| {
        let what =
            format!("{host:?}, of {address:?}, cannot be a TLS server name: set one with Tls::server_name");
        DialError::new(what).permanent()
    })
}

fn parsed(name: &str) -> Result<ServerName<'static>, String> {
    // An IPv6 zone says which interface leads there; it is not part of the name.
    let bare = match name.split_once('%') {
        Some((ip, _zone)) if ip.contains(':') => ip,
        _ => name,
    };
    ServerName::try_from(bare.to_owned()).map_err(|_| name.to_owned())
}

fn host(address: &str) -> &str {
    if address.parse::<IpAddr>().is_ok() {
        return address;
    }
    let bracketed = |host: &'_ str| host.starts_with('[') && host.ends_with(']');
    let host = match address.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => host,
        _ => address,
    };
    if bracketed(host) { &host[1..host.len() - 1] } else { host }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_host_part_of_the_address() {
        for (address, name) in [
            ("example.org:443", "example.org"),
            ("example.org", "example.org"),
            ("localhost:0", "localhost"),
            ("127.0.0.1:443", "127.0.0.1"),
            ("127.0.0.1", "127.0.0.1"),
            ("[::1]:443", "::1"),
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("[fe80::1%eth0]:443", "fe80::1"),
        ] {
            assert_eq!(of_address(address).unwrap().to_str(), name, "{address}");
        }
    }

    #[test]
    fn what_cannot_be_a_name_is_refused_for_good() {
        for address in ["", ":443", "/run/peer.sock", "two words:443", "a..b:443", "-:443"] {
            let error = of_address(address).unwrap_err();
            assert!(error.is_permanent() && error.to_string().contains("server_name"), "{address}: {error}");
        }
        let error = PeerName::from("no name").resolved().unwrap_err();
        assert!(error.is_permanent() && error.to_string().contains("\"no name\""), "{error}");
        assert!(PeerName::from("example.org".to_owned()).resolved().is_ok());
    }
}
