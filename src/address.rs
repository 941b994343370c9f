//! What a resource is called: a string that is cheap to clone. What it means is the dialer's business.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use smol_str::{SmolStr, ToSmolStr, format_smolstr};

/// The address of a peer, such as `"example.org:443"`.
///
/// A string that is cheap to clone: up to 23 bytes are in place, more are shared. What it means is up to the
/// [`Dial`](crate::Dial) it is given to: a host and a port for [`Tcp`](crate::dial::Tcp), whatever you like for a dialer of
/// your own.
///
/// It is shown with its control characters escaped, in errors and logs too: one that came from elsewhere cannot end a line
/// there. [`as_str`](Self::as_str) has it as it is.
///
/// # Examples
///
/// ```
/// use fdpool::Address;
///
/// assert_eq!(Address::from("example.org:80"), Address::from(("example.org", 80)));
/// assert_eq!(Address::from(("::1", 80)).as_str(), "[::1]:80");
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(SmolStr);

impl Address {
    /// The address as a string slice.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.as_str();
        if !address.contains(char::is_control) {
            return fmt::Display::fmt(address, f);
        }
        address.chars().try_for_each(|char| match char.is_control() {
            true => write!(f, "{}", char.escape_debug()),
            false => write!(f, "{char}"),
        })
    }
}

impl Borrow<str> for Address {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for Address {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl From<&str> for Address {
    fn from(address: &str) -> Self {
        Self(address.into())
    }
}

impl From<String> for Address {
    fn from(address: String) -> Self {
        Self(address.into())
    }
}

impl From<&String> for Address {
    fn from(address: &String) -> Self {
        address.as_str().into()
    }
}

impl From<&Address> for Address {
    fn from(address: &Address) -> Self {
        address.clone()
    }
}

impl From<Cow<'_, str>> for Address {
    fn from(address: Cow<'_, str>) -> Self {
        Self(address.into())
    }
}

impl From<Box<str>> for Address {
    fn from(address: Box<str>) -> Self {
        Self(address.into())
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self(address.to_smolstr())
    }
}

/// An IPv6 literal without brackets gets its brackets.
impl From<(&str, u16)> for Address {
    fn from((host, port): (&str, u16)) -> Self {
        // `fe80::1%eth0`
        let has_zone = || host.split_once('%').is_some_and(|(ip, _)| ip.parse::<Ipv6Addr>().is_ok());
        match host.parse() {
            Ok(ip @ IpAddr::V6(_)) => (ip, port).into(),
            _ if has_zone() => Self(format_smolstr!("[{host}]:{port}")),
            _ => Self(format_smolstr!("{host}:{port}")),
        }
    }
}

impl From<(String, u16)> for Address {
    fn from((host, port): (String, u16)) -> Self {
        (host.as_str(), port).into()
    }
}

impl From<(IpAddr, u16)> for Address {
    fn from(address: (IpAddr, u16)) -> Self {
        SocketAddr::from(address).into()
    }
}

/// What is not UTF-8 in the path is replaced.
impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        path.to_string_lossy().into()
    }
}

impl From<&PathBuf> for Address {
    fn from(path: &PathBuf) -> Self {
        path.as_path().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_shown_ends_no_line() {
        let address = Address::from("a\r\nERROR: b\u{1b}[31m:80");
        assert_eq!(address.to_string(), "a\\r\\nERROR: b\\u{1b}[31m:80");
        assert_eq!(address.as_str(), "a\r\nERROR: b\u{1b}[31m:80");
        assert_eq!(format!("{:>6}", Address::from("b:80")), "  b:80");
    }
}
