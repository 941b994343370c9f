//! TLS: an echo server of its own, with a certificate authority of its own; what is agreed on, sessions that are
//! resumed, and certificates that are refused.
//! Run it with `cargo run --example tls_client`; with `-- example.org:443`, it shakes hands with that server, and
//! trusts what this system trusts.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

use fdpool::dial::tls::rustls::crypto::ring;
use fdpool::dial::tls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use fdpool::dial::tls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use fdpool::dial::tls::tokio_rustls::TlsAcceptor;
use fdpool::dial::tls::tokio_rustls::client::TlsStream;
use fdpool::dial::{Tcp, Tls, tls};
use fdpool::{Budget, Conn, ConnResource, GetError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Failure = Box<dyn Error + Send + Sync>;

const NAME: &str = "echo.internal";

/// A certificate authority, and a server that it says is [`NAME`].
fn identities() -> Result<(CertificateDer<'static>, ServerConfig), Failure> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new([NAME.to_owned()])?.signed_by(&key, &authority)?;
    let mut server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )?;
    server.alpn_protocols = vec![b"echo/2".to_vec(), b"echo/1".to_vec()];
    Ok((authority.der().clone(), server))
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor) -> Result<(), Failure> {
    loop {
        let (stream, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let stream = acceptor.accept(stream).await?;
            let (mut read, mut write) = tokio::io::split(stream);
            tokio::io::copy(&mut read, &mut write).await
        });
    }
}

async fn exchange(conn: &mut Conn<TlsStream<TcpStream>>) -> Result<(), Failure> {
    conn.write_all(b"ping").await?;
    conn.flush().await?;
    let mut pong = [0; 4];
    conn.read_exact(&mut pong).await?;
    assert_eq!(&pong, b"ping");
    Ok(())
}

fn describe(conn: &Conn<TlsStream<TcpStream>>) {
    let session = conn.get_ref().1;
    println!(
        "{}: {:?}, {:?} handshake, speaks {}",
        conn.address(),
        session.protocol_version().expect("after the handshake"),
        session.handshake_kind().expect("after the handshake"),
        session.alpn_protocol().map_or("whatever".into(), String::from_utf8_lossy),
    );
}

/// What the platform trusts, and the name in the address.
async fn visit(address: &str) -> Result<(), Failure> {
    let resource = ConnResource::with_dialer(address, Tls::with_platform_verifier(Tcp::default())?);
    let conn = resource.get().await?;
    describe(&conn);
    conn.shutdown().await?;
    Ok(())
}

async fn demonstrate(address: SocketAddr, authority: CertificateDer<'static>) -> Result<(), Failure> {
    let budget = Budget::new(4);
    let mut roots = RootCertStore::empty();
    roots.add(authority)?;
    let mut config: ClientConfig = tls::config_builder()?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"echo/2".to_vec()];
    let dialer = Tls::new(Tcp::default(), Arc::new(config));

    // The address is not the name: that is to be proved by the certificate.
    let echo = ConnResource::builder(address, dialer.clone().server_name(NAME)).budget(&budget).build();
    let mut conn = echo.get().await?;
    describe(&conn);
    exchange(&mut conn).await?;
    conn.put();
    let mut conn = echo.get().await?;
    assert!(conn.is_reused(), "no handshake at all");
    exchange(&mut conn).await?;
    conn.shutdown().await?;
    let conn = echo.get().await?;
    assert!(!conn.is_reused());
    describe(&conn); // the session of before is resumed
    conn.put();

    // Without the name, the peer would have to be 127.0.0.1; an authority that nobody knows can say what it likes.
    let nameless = ConnResource::builder(address, dialer).budget(&budget).build();
    let trusting_nobody = tls::config_builder()?.with_root_certificates(RootCertStore::empty());
    let distrustful =
        Tls::new(Tcp::default(), Arc::new(trusting_nobody.with_no_client_auth())).server_name(NAME);
    let distrustful = ConnResource::builder(address, distrustful).budget(&budget).build();
    for resource in [nameless, distrustful] {
        match resource.get().await {
            Err(GetError::Dial { source, .. }) if source.is_permanent() => println!("refused: {source}"),
            Err(other) => return Err(other.into()),
            Ok(_) => return Err("a certificate that should have been refused".into()),
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    if let Some(address) = std::env::args().nth(1) {
        return visit(&address).await;
    }
    let (authority, server) = identities()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(serve(listener, Arc::new(server).into()));
    demonstrate(address, authority).await
}
