//! What the tests of TLS share: a certificate authority of their own, rustls servers on this runtime or in the
//! test's hands, and an nginx.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use fdpool::dial::tls::rustls::crypto::ring;
use fdpool::dial::tls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use fdpool::dial::tls::rustls::server::WebPkiClientVerifier;
use fdpool::dial::tls::rustls::version::{TLS12, TLS13};
use fdpool::dial::tls::rustls::{
    ClientConfig, HandshakeKind, RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion,
};
use fdpool::dial::tls::{config_builder, tokio_rustls};
use fdpool::dial::{Tcp, Tls};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::servers::{Server, Site};

pub const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
pub const BOTH: &[&SupportedProtocolVersion] = &VERSIONS;

/// A certificate and its key.
pub struct Identity {
    pub certificate: rcgen::Certificate,
    pub key: KeyPair,
}

impl Identity {
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.der().clone()]
    }

    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

/// A certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        // Of one name they would be taken for one that signs badly.
        static AUTHORITIES: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test authority {}", AUTHORITIES.fetch_add(1, Ordering::SeqCst));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn issue(&self, names: &[&str]) -> Identity {
        self.issue_with(names, |_| ())
    }

    pub fn issue_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Identity { certificate: params.signed_by(&key, &self.0).unwrap(), key }
    }

    pub fn revoke(&self, serial: u64) -> CertificateRevocationListDer<'static> {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2200, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap().der().clone()
    }

    pub fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }

    /// A client that trusts this authority.
    pub fn client(&self) -> ClientConfig {
        config_builder().unwrap().with_root_certificates(self.roots()).with_no_client_auth()
    }

    pub fn client_showing(&self, identity: &Identity) -> ClientConfig {
        let builder = config_builder().unwrap().with_root_certificates(self.roots());
        builder.with_client_auth_cert(identity.chain(), identity.key()).unwrap()
    }

    /// A TLS dialer over TCP that trusts this authority.
    pub fn dialer(&self) -> Tls<Tcp> {
        Tls::new(Tcp::default(), Arc::new(self.client()))
    }

    /// A server that asks its clients for a certificate of this authority.
    pub fn server_asking(
        &self,
        identity: &Identity,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ServerConfig {
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots(), Arc::clone(&provider));
        ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(identity.chain(), identity.key())
            .unwrap()
    }
}

pub fn server(identity: &Identity, versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain(), identity.key())
        .unwrap()
}

/// What a server saw of a handshake.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub name: Option<String>,
    pub alpn: Option<Vec<u8>>,
    pub kind: Option<HandshakeKind>,
    pub certificates: usize,
}

impl Seen {
    fn of(session: &ServerConnection) -> Self {
        Self {
            name: session.server_name().map(str::to_owned),
            alpn: session.alpn_protocol().map(<[u8]>::to_vec),
            kind: session.handshake_kind(),
            certificates: session.peer_certificates().map_or(0, <[_]>::len),
        }
    }
}

/// An echo server, as a task of this runtime. Ends with it.
pub struct Echo {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Echo {
    pub async fn start(config: ServerConfig) -> Self {
        Self::start_at("127.0.0.1:0", config).await.unwrap()
    }

    /// `None`: there is no such address here.
    pub async fn start_at(address: &str, config: ServerConfig) -> Option<Self> {
        let listener = tokio::net::TcpListener::bind(address).await.ok()?;
        let address = listener.local_addr().unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((peer, _)) = listener.accept().await {
                let (acceptor, log) = (acceptor.clone(), Arc::clone(&log));
                tokio::spawn(async move {
                    let Ok(peer) = acceptor.accept(peer).await else { return };
                    log.lock().unwrap().push(Seen::of(peer.get_ref().1));
                    echo(peer).await;
                });
            }
        });
        Some(Self { address, seen })
    }

    /// The handshakes that were completed.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

pub async fn echo(mut peer: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    let mut buf = [0; 1024];
    while let Ok(n @ 1..) = peer.read(&mut buf).await {
        if peer.write_all(&buf[..n]).await.is_err() || peer.flush().await.is_err() {
            return;
        }
    }
}

/// The server's end of a connection, in the test's hands: nothing is sent but when the test says so.
pub struct Hand {
    pub session: ServerConnection,
    pub stream: TcpStream,
    /// Bytes sent since the handshake.
    pub sent: usize,
}

impl Hand {
    /// Accepts one connection on a thread, and shakes hands. A TLS 1.3 server's tickets are not sent yet.
    pub fn accept(listener: &TcpListener, config: &Arc<ServerConfig>) -> JoinHandle<Self> {
        let (listener, config) = (listener.try_clone().unwrap(), Arc::clone(config));
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut session = ServerConnection::new(config).unwrap();
            while session.is_handshaking() {
                while session.wants_write() {
                    session.write_tls(&mut stream).unwrap();
                }
                assert_ne!(session.read_tls(&mut stream).unwrap(), 0, "the client went away");
                session.process_new_packets().unwrap();
            }
            if session.protocol_version() == Some(TLS12.version) {
                // Its last flight ends the client's handshake.
                while session.wants_write() {
                    session.write_tls(&mut stream).unwrap();
                }
            }
            Self { session, stream, sent: 0 }
        })
    }

    /// Sends what TLS has to send: in TLS 1.3, the tickets.
    pub fn send(&mut self) {
        assert!(self.session.wants_write(), "nothing to send");
        while self.session.wants_write() {
            self.sent += self.session.write_tls(&mut self.stream).unwrap();
        }
    }

    pub fn send_data(&mut self, data: &[u8]) {
        self.session.writer().write_all(data).unwrap();
        self.send();
    }

    pub fn send_close_notify(&mut self) {
        self.session.send_close_notify();
        self.send();
    }

    /// The client's next words, or nothing if it said that there are no more. An error: it only went away.
    pub fn receive(&mut self) -> std::io::Result<Vec<u8>> {
        let mut buf = [0; 1024];
        let n = tokio_rustls::rustls::Stream::new(&mut self.session, &mut self.stream).read(&mut buf)?;
        Ok(buf[..n].to_vec())
    }

    /// Waits, without the runtime, until all that was sent has arrived at this socket, which nobody reads from.
    pub fn until_arrived(&self, at: &tokio::net::TcpStream) {
        let mut buf = vec![std::mem::MaybeUninit::uninit(); self.sent];
        while self.sent > 0 && !socket2::SockRef::from(at).peek(&mut buf).is_ok_and(|n| n == self.sent) {
            std::thread::yield_now();
        }
    }

    /// Goes away with a reset.
    pub fn reset(self) {
        reset(self.stream);
    }
}

pub fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
}

/// An nginx that answers any request over TLS with `hello`; `None` if there is none.
pub fn nginx(identity: &Identity, protocols: &str) -> Option<Server> {
    let settings = format!(
        "ssl_protocols {protocols}; ssl_certificate chain.pem; ssl_certificate_key key.pem;\n\
         keepalive_requests 100000;"
    );
    let files = [("chain.pem", identity.certificate.pem()), ("key.pem", identity.key.serialize_pem())];
    Server::nginx(&Site { listen: "ssl", settings: &settings, files: &files })
}
