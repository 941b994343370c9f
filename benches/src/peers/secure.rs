//! TLS over TCP, to a server that proves who it is by a certificate made for this run. Whoever connects shares one
//! configuration, and with it the sessions that are resumed.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use fdpool::dial::tls::rustls::crypto::ring;
use fdpool::dial::tls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use fdpool::dial::tls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use fdpool::dial::tls::tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use fdpool::dial::{Tcp, Tls};
use tokio::net::TcpStream;

use super::Object;

pub type Secure = TlsStream<TcpStream>;

const NAME: &str = "fleet.test";

/// Who the server is.
struct Identity {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

static IDENTITY: LazyLock<Identity> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a certificate");
    Identity { certificate: made.cert.der().to_vec(), key: made.signing_key.serialize_der() }
});

static CLIENT: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(IDENTITY.certificate.clone())).expect("its own certificate");
    let builder = fdpool::dial::tls::config_builder().expect("versions of TLS");
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
});

/// What the server's process is to be told, as a variable of its environment.
pub const VARIABLE: &str = "FDPOOL_BENCHES_IDENTITY";

pub fn told() -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{} {}", hex(&IDENTITY.certificate), hex(&IDENTITY.key))
}

/// The server's side, of what it was told.
pub fn acceptor(told: &str) -> io::Result<TlsAcceptor> {
    let bytes = |hex: &str| {
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        hex.as_bytes().chunks(2).map(byte).collect::<Option<Vec<u8>>>()
    };
    let told = told.split_once(' ').and_then(|(certificate, key)| Some((bytes(certificate)?, bytes(key)?)));
    let (certificate, key) = told.ok_or(io::ErrorKind::InvalidInput)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key));
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let config = builder.with_no_client_auth();
    let config =
        config.with_single_cert(vec![CertificateDer::from(certificate)], key).map_err(io::Error::other)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl Object for Secure {
    type Dialer = Tls<Tcp>;

    fn dialer() -> Tls<Tcp> {
        Tls::new(Tcp::default(), Arc::clone(&CLIENT)).server_name(NAME)
    }

    async fn connect(to: SocketAddr) -> io::Result<Self> {
        let stream = <TcpStream as Object>::connect(to).await?;
        let name = ServerName::try_from(NAME).expect("a name");
        TlsConnector::from(Arc::clone(&CLIENT)).connect(name, stream).await
    }

    /// Session tickets have been read by then, with the first answer.
    fn is_fit(&self) -> bool {
        self.get_ref().0.is_fit()
    }
}
