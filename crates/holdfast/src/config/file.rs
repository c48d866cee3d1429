//! The file as it is written. Every key is refused that is not named here; every value is checked by `validate`.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

/// A value together with where it stands, so that a bad one can be shown.
pub(super) type Value<T> = Option<Spanned<T>>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigToml {
    #[serde(default)]
    pub(super) repository: BTreeMap<Spanned<String>, RepositoryToml>,
    #[serde(default)]
    pub(super) source: BTreeMap<Spanned<String>, SourceToml>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RepositoryToml {
    pub(super) path: Value<String>,
    pub(super) url: Value<String>,
    pub(super) endpoint: Value<String>,
    pub(super) region: Value<String>,
    pub(super) path_style: Value<bool>,
    pub(super) ca_file: Value<String>,
    pub(super) credentials_file: Value<String>,
    pub(super) ssh_key_file: Value<String>,
    pub(super) known_hosts_file: Value<String>,
    pub(super) site: Value<String>,
    pub(super) identity_file: Value<String>,
    pub(super) identity_passphrase_file: Value<String>,
    pub(super) recipients: Option<Vec<Spanned<String>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceToml {
    pub(super) connection: Value<String>,
    pub(super) repository: Value<String>,
    pub(super) copies: Option<Vec<Spanned<String>>>,
    pub(super) required: Option<Vec<Spanned<String>>>,
    pub(super) data_directory: Value<String>,
    pub(super) slot: Value<String>,
    pub(super) spool: Value<String>,
    #[serde(default)]
    pub(super) backup: BackupToml,
    #[serde(default)]
    pub(super) wal: WalToml,
    pub(super) retention: Option<RetentionToml>,
    pub(super) places: Option<PlacesToml>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlacesToml {
    pub(super) copies: Value<i64>,
    pub(super) sites: Value<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BackupToml {
    pub(super) connection: Value<String>,
    pub(super) parallel: Value<i64>,
    pub(super) rate_limit: Value<String>,
    pub(super) iops_limit: Value<i64>,
    pub(super) nice: Value<i64>,
    pub(super) io_class: Value<String>,
    pub(super) latency_limit: Value<String>,
    pub(super) latency_query: Value<String>,
    pub(super) windows: Option<Vec<Spanned<String>>>,
    pub(super) time_zone: Value<String>,
    pub(super) compression_level: Value<i64>,
    pub(super) checkpoint: Value<String>,
    pub(super) replay_target: Value<String>,
    pub(super) replay_rate: Value<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RetentionToml {
    pub(super) last: Value<i64>,
    pub(super) minimum_verified: Value<i64>,
    pub(super) within: Value<String>,
    pub(super) daily: Value<i64>,
    pub(super) weekly: Value<i64>,
    pub(super) monthly: Value<i64>,
    pub(super) yearly: Value<i64>,
    pub(super) window: Value<String>,
    pub(super) time_zone: Value<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WalToml {
    pub(super) interval: Value<String>,
    pub(super) synchronous: Option<bool>,
}
