//! Where a repository is kept, as people write it, and what it takes to get there.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use opendal::services::{Azblob, Cos, Gcs, Oss, S3};
use opendal::{HttpTransporter, OperationContext, Operator};
use opendal_http_transport_reqwest::ReqwestTransport;

/// The kinds of object stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    S3,
    AzureBlob,
    Gcs,
    Oss,
    Cos,
}

impl Service {
    const ALL: [Self; 5] = [Self::S3, Self::AzureBlob, Self::Gcs, Self::Oss, Self::Cos];

    /// What an address begins with.
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::AzureBlob => "azblob",
            Self::Gcs => "gcs",
            Self::Oss => "oss",
            Self::Cos => "cos",
        }
    }

    /// The keys that a file of credentials may have.
    pub const fn credentials(self) -> &'static [&'static str] {
        match self {
            Self::S3 => &["access_key_id", "secret_access_key", "session_token", "role_arn", "external_id", "profile"],
            Self::AzureBlob => &["account_name", "account_key", "sas_token"],
            Self::Gcs => &["credential", "credential_path", "service_account"],
            Self::Oss => &["access_key_id", "access_key_secret", "security_token", "role_arn", "external_id"],
            Self::Cos => &["secret_id", "secret_key", "security_token"],
        }
    }
}

/// The address of a repository in a bucket: `s3://BUCKET/PREFIX`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub service: Service,
    pub bucket: String,
    /// Without slashes around it; may be empty.
    pub prefix: String,
}

/// The text is no address of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an address as in `s3://bucket/prefix`, with one of s3, azblob, gcs, oss, cos")]
pub struct AddressError;

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (scheme, rest) = text.split_once("://").ok_or(AddressError)?;
        let service = Service::ALL.into_iter().find(|service| service.scheme() == scheme).ok_or(AddressError)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        let prefix = prefix.trim_matches('/');
        let is_part = |part: &str| !part.is_empty() && part != "." && part != ".." && is_plain(part);
        if bucket.is_empty() || !is_plain(bucket) || !(prefix.is_empty() || prefix.split('/').all(is_part)) {
            return Err(AddressError);
        }
        Ok(Self { service, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.service.scheme(), self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

/// A bucket, and how to reach it.
#[derive(Clone)]
pub struct Place {
    pub address: Address,
    /// Where the service is, if not where its provider has it.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// Whether the bucket's name is in the path, and not in the host's name. S3 only.
    pub path_style: bool,
    /// Certificates that are trusted besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// By [`Service::credentials()`]. What is not here comes from the environment, the provider's files, or the machine.
    pub credentials: BTreeMap<String, String>,
}

/// The place cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    #[error("could not read the certificates in {}", .path.display())]
    CaFile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} holds no certificate that can be used", .path.display())]
    Certificates {
        path: PathBuf,
        #[source]
        source: reqwest::Error,
    },
    #[error("could not prepare requests over HTTP")]
    Client(#[source] reqwest::Error),
    #[error("{address} cannot be used as it is configured: {why}")]
    Settings { address: String, why: String },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl fmt::Debug for Place {
    /// Without what is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("address", &self.address)
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

impl Place {
    pub(crate) fn operator(&self) -> Result<Operator, OpenError> {
        let settings = self.settings();
        let operator = match self.address.service {
            Service::S3 => Operator::from_iter::<S3>(settings),
            Service::AzureBlob => Operator::from_iter::<Azblob>(settings),
            Service::Gcs => Operator::from_iter::<Gcs>(settings),
            Service::Oss => Operator::from_iter::<Oss>(settings),
            Service::Cos => Operator::from_iter::<Cos>(settings),
        };
        let operator = operator
            .map_err(|error| OpenError::Settings { address: self.to_string(), why: error.message().to_owned() })?;
        let transport = ReqwestTransport::new(self.client()?);
        Ok(operator.with_context(OperationContext::new().with_http_transport(HttpTransporter::new(transport))))
    }

    fn settings(&self) -> BTreeMap<String, String> {
        let mut settings = self.credentials.clone();
        let mut set = |key: &str, value: &str| drop(settings.insert(key.to_owned(), value.to_owned()));
        set(if self.address.service == Service::AzureBlob { "container" } else { "bucket" }, &self.address.bucket);
        set("root", &format!("/{}", self.address.prefix));
        if let Some(endpoint) = &self.endpoint {
            set("endpoint", endpoint);
        }
        if self.address.service == Service::S3 {
            // Any will do where there are none, as at most servers that speak the protocol.
            set("region", self.region.as_deref().unwrap_or("us-east-1"));
            set("checksum_algorithm", "md5");
            if !self.path_style {
                set("enable_virtual_host_style", "true");
            }
        }
        settings
    }

    fn client(&self) -> Result<reqwest::Client, OpenError> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("holdfast/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .pool_idle_timeout(Duration::from_secs(20));
        if let Some(path) = &self.ca_file {
            let pem = std::fs::read(path).map_err(|source| OpenError::CaFile { path: path.clone(), source })?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem);
            let certificates = certificates.map_err(|source| OpenError::Certificates { path: path.clone(), source })?;
            builder = builder.tls_certs_merge(certificates);
        }
        builder.build().map_err(OpenError::Client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_and_refuse_other_text() {
        for text in ["s3://bucket", "s3://bucket/a/b", "azblob://c/x", "gcs://b.c", "oss://b", "cos://b-125/p"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("s3://bucket//a/".parse::<Address>().unwrap().to_string(), "s3://bucket/a");
        for text in ["", "s3", "s3://", "s3:///a", "ftp://b", "s3://b/../c", "s3://b/a b", "s3://b/a//c", "s3://u@b/"] {
            assert_eq!(text.parse::<Address>(), Err(AddressError), "{text}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let place = Place {
            address: "s3://bucket".parse().unwrap(),
            endpoint: None,
            region: None,
            path_style: false,
            ca_file: None,
            credentials: [("secret_access_key".to_owned(), "hush".to_owned())].into(),
        };
        assert!(!format!("{place:?} {place}").contains("hush"));
    }
}
