//! TLS as libpq means it: `sslmode` says how much the server's certificate has to prove.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::TlsError;
use crate::conninfo::{Roots, SslMode, TlsOptions};

pub(super) struct Connector {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Connector {
    /// Reads the certificates that `options` name and prepares connections to `host`.
    pub(super) fn new(options: &TlsOptions, host: &str) -> Result<Self, TlsError> {
        let check = match (options.mode, &options.roots) {
            (SslMode::Disable | SslMode::Prefer, _) | (SslMode::Require, Roots::Unset) => Check::Nothing,
            (SslMode::Require | SslMode::VerifyCa, _) => Check::Authority,
            (SslMode::VerifyFull, _) => Check::AuthorityAndName,
        };
        let provider = Arc::new(provider::default_provider());
        let (roots, pinned) = match check {
            Check::Nothing => (RootCertStore::empty(), Vec::new()),
            Check::Authority | Check::AuthorityAndName => trusted(&options.roots)?,
        };
        let verifier = Verifier { check, roots, pinned, provider: Arc::clone(&provider) };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Configuration)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match (&options.certificate, &options.key) {
            (Some(certificate), Some(key)) => {
                builder.with_client_auth_cert(certificates(certificate)?, private_key(key)?)
            }
            _ => Ok(builder.with_no_client_auth()),
        };
        let config = Arc::new(config.map_err(TlsError::Configuration)?);
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| TlsError::ServerName { host: host.to_owned() })?;
        Ok(Self { connector: TlsConnector::from(config), name })
    }

    /// Also gives the hash of the server's certificate to which a login can be bound, if its kind has one.
    pub(super) async fn handshake(&self, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Option<Vec<u8>>)> {
        let stream = self.connector.connect(self.name.clone(), stream).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let binding = certificate.and_then(|certificate| end_point_hash(certificate));
        Ok((stream, binding))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::Certificate { path: path.to_owned(), source };
    let certificates = CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(failed)?;
    if certificates.is_empty() { Err(TlsError::NoCertificate { path: path.to_owned() }) } else { Ok(certificates) }
}

/// Reads a private key, unless others can as well. The rule is libpq's.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    if let Ok(metadata) = std::fs::metadata(path) {
        let mode = metadata.mode() & 0o777;
        let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
        if mode & forbidden != 0 {
            return Err(TlsError::KeyPermissions { path: path.to_owned(), mode });
        }
    }
    PrivateKeyDer::from_pem_file(path).map_err(|source| TlsError::Key { path: path.to_owned(), source })
}

/// The trusted authorities, and for a file also its certificates as they are.
fn trusted(roots: &Roots) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), TlsError> {
    let mut store = RootCertStore::empty();
    if let Roots::File(path) = roots {
        let certificates = certificates(path)?;
        for certificate in &certificates {
            store.add(certificate.clone()).map_err(TlsError::Configuration)?;
        }
        return Ok((store, certificates));
    }
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "could not read one of the system's certificates");
    }
    store.add_parsable_certificates(system.certs);
    if store.is_empty() { Err(TlsError::NoSystemRoots) } else { Ok((store, Vec::new())) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Nothing,
    Authority,
    AuthorityAndName,
}

#[derive(Debug)]
struct Verifier {
    check: Check,
    roots: RootCertStore,
    /// Certificates that are trusted as they are: PostgreSQL's manual makes a self-signed server certificate that is
    /// also an authority, which strict verification refuses at the end of a chain although the operator named it.
    pinned: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.check == Check::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let chain =
            verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms);
        match chain {
            // "Is an authority" comes as `Other`; that a certificate has expired does not.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_))) if self.pinned.contains(end_entity) => {}
            outcome => outcome?,
        }
        if self.check == Check::AuthorityAndName {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// `tls-server-end-point` of RFC 5929: the certificate hashed by the hash of its own signature, SHA-256 at least.
fn end_point_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];
    let algorithm = match signature_algorithm(certificate)? {
        // MD5, SHA-1 and SHA-256 with RSA; SHA-1 and SHA-256 with ECDSA.
        oid if oid.strip_prefix(RSA).is_some_and(|kind| matches!(kind, [4 | 5 | 11])) => &digest::SHA256,
        oid if oid.strip_prefix(ECDSA).is_some_and(|kind| matches!(kind, [1] | [3, 2])) => &digest::SHA256,
        oid if oid.strip_prefix(RSA) == Some(&[12]) || oid.strip_prefix(ECDSA) == Some(&[3, 3]) => &digest::SHA384,
        oid if oid.strip_prefix(RSA) == Some(&[13]) || oid.strip_prefix(ECDSA) == Some(&[3, 4]) => &digest::SHA512,
        // Ed25519 and RSA-PSS: the hash is not agreed upon, so logins are not bound.
        _ => return None,
    };
    Some(digest::digest(algorithm, certificate).as_ref().to_vec())
}

/// The object identifier in `Certificate ::= SEQUENCE { tbs SEQUENCE, algorithm SEQUENCE { OID, ... }, ... }`.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (certificate, _) = der(SEQUENCE, certificate)?;
    let (_, rest) = der(SEQUENCE, certificate)?;
    let (algorithm, _) = der(SEQUENCE, rest)?;
    der(OBJECT_IDENTIFIER, algorithm).map(|(oid, _)| oid)
}

/// Splits one DER element with `tag` into its content and what follows it.
fn der(tag: u8, input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = input.split_first_chunk()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f)).filter(|(d, _)| d.len() <= 4)?;
        (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
    };
    (found == tag).then_some(())?;
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_the_signature_algorithm() {
        let oid = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 3, 3];
        let mut certificate = vec![0x30, 0x81, 17, 0x30, 1, 0, 0x30, 12, 6, 8];
        certificate.extend(oid);
        certificate.extend([5, 0, 3, 0]);
        assert_eq!(signature_algorithm(&certificate), Some(oid.as_slice()));
        assert_eq!(end_point_hash(&certificate).map(|hash| hash.len()), Some(48));
    }

    proptest! {
        #[test]
        fn no_certificate_makes_it_panic(bytes: Vec<u8>) {
            let hash = end_point_hash(&bytes);
            prop_assert!(hash.is_none_or(|hash| hash.len() >= 32));
        }
    }
}
