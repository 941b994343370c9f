//! Where configurations begin: a crypto provider that is always there, and the platform's verifier.

use std::sync::{Arc, OnceLock};

use rustls_platform_verifier::BuilderVerifierExt;
use tokio_rustls::rustls::client::{Resumption, WantsClientCert};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::{ClientConfig, ConfigBuilder, Error, WantsVerifier};

/// Peers whose sessions are remembered: rustls keeps eight a peer, and for 32 peers unless told otherwise.
const REMEMBERED_PEERS: usize = 1024;

/// Begins a configuration: with the process's default crypto provider if there is one, with ring otherwise.
///
/// [`ClientConfig::builder`] panics when several providers are compiled in and none is installed; this does not.
///
/// # Errors
///
/// If the process's default provider supports no version of TLS.
pub fn config_builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, Error> {
    let provider = CryptoProvider::get_default().cloned();
    let provider = provider.unwrap_or_else(|| Arc::new(ring::default_provider()));
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()
}

/// Begins a configuration that trusts what the platform trusts. On Linux that is the system's certificate store
/// (or `SSL_CERT_FILE` and `SSL_CERT_DIR`), which is read here, and not again; elsewhere it is the operating
/// system's verifier.
///
/// # Errors
///
/// If there is no certificate in the store, or it cannot be read; those of [`config_builder`].
pub fn platform_config_builder() -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, Error> {
    config_builder()?.with_platform_verifier()
}

/// The one that everybody shares who asks for nothing special. A failure is not kept.
pub(super) fn platform() -> Result<Arc<ClientConfig>, Error> {
    static SHARED: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = SHARED.get() {
        return Ok(Arc::clone(config));
    }
    let mut config = platform_config_builder()?.with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(8 * REMEMBERED_PEERS);
    Ok(Arc::clone(SHARED.get_or_init(|| Arc::new(config))))
}
