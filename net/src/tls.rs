//! Mutual TLS 1.3 with raw public keys (RFC 7250): no certificates, no names, no resumption, no early data.

use std::sync::{Arc, OnceLock};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerMisbehaved, ServerConfig,
    SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};

use crate::{admission::Admission, identity::Identity, ids::PeerId};

/// The protocol and its major version.
pub(crate) const ALPN: &[u8] = b"qmesh/1";
/// quinn wants a server name, though with pinned keys nobody reads it.
pub(crate) const SERVER_NAME: &str = "qmesh";
/// Label of the exporter that join proofs are bound to.
pub(crate) const EXPORTER_LABEL: &[u8] = b"qmesh-join";

/// Where the client's verifier leaves the key that it saw.
pub(crate) type SeenKey = Arc<OnceLock<PeerId>>;

/// The dialling side, which accepts one key only and notes in `seen` which one it was shown.
pub(crate) fn client(identity: &Identity, expect: PeerId, seen: SeenKey) -> Result<QuicClientConfig, Error> {
    let config = client_config(identity, expect, seen)?;
    QuicClientConfig::try_from(config).map_err(|error| Error::General(error.to_string()))
}

/// As `client`, without QUIC around it.
pub(crate) fn client_config(identity: &Identity, expect: PeerId, seen: SeenKey) -> Result<ClientConfig, Error> {
    let verifier = Arc::new(Verifier { wanted: Wanted::Pinned { expect, seen }, provider: provider() });
    let resolver = Arc::new(AlwaysResolvesClientRawPublicKeys::new(identity.certified()));
    let mut config = ClientConfig::builder_with_provider(verifier.provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The accepting side, which accepts the keys that `admission` does.
pub(crate) fn server(identity: &Identity, admission: Admission) -> Result<QuicServerConfig, Error> {
    let verifier = Arc::new(Verifier { wanted: Wanted::Admitted(admission), provider: provider() });
    let mut config = ServerConfig::builder_with_provider(verifier.provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Resolver(identity.certified())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    QuicServerConfig::try_from(config).map_err(|error| Error::General(error.to_string()))
}

/// ring, with the suite first that this CPU is fast at. AES-128 stays in any case: QUIC's first packets need it.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    #[cfg(target_arch = "x86_64")]
    let fast_aes = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let fast_aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let fast_aes = false;
    use rustls::CipherSuite::{TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256};
    let first = if fast_aes { TLS13_AES_128_GCM_SHA256 } else { TLS13_CHACHA20_POLY1305_SHA256 };
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != first);
    Arc::new(provider)
}

/// Our key, and a log line for diallers that speak something else.
#[derive(Debug)]
struct Resolver(Arc<CertifiedKey>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let offered: Vec<_> = hello.alpn().into_iter().flatten().collect();
        if !offered.contains(&ALPN) {
            let offered: Vec<_> = offered.into_iter().map(String::from_utf8_lossy).collect();
            tracing::info!(?offered, speaks = "qmesh/1", "a dialler speaks another protocol");
        }
        Some(self.0.clone())
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }
}

/// Judges the peer's key; its signature, by ring.
#[derive(Debug)]
struct Verifier {
    wanted: Wanted,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Wanted {
    Admitted(Admission),
    Pinned { expect: PeerId, seen: SeenKey },
}

impl Verifier {
    fn judge(&self, spki: &CertificateDer<'_>) -> Result<(), Error> {
        let peer = PeerId::from_spki(spki).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let welcome = match &self.wanted {
            Wanted::Admitted(admission) => admission.admits(peer),
            Wanted::Pinned { expect, seen } => *seen.get_or_init(|| peer) == *expect,
        };
        if welcome { Ok(()) } else { Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) }
    }

    fn verify_signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(&**spki), signature, algorithms)
    }
}

/// TLS 1.2 is never offered, so a signature of it is an attack.
fn refuse_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
