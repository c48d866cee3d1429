use std::collections::BTreeMap;

use holdfast_format::FORMAT_VERSION;
use holdfast_types::{Micros, RepositoryId};
use serde::{Deserialize, Serialize};

use crate::Recipient;

/// What a repository says of itself: the newest object under `config/`. Not secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryConfig {
    /// The version of the format that a reader must know.
    pub format: u16,
    pub id: RepositoryId,
    /// Grows by one with each change.
    pub generation: u32,
    pub created_at: Micros,
    /// New epoch keys are sealed to these.
    pub recipients: Vec<Recipient>,
}

/// The object. Its checksum tells of damage, not of forgery: whoever can write it can compute one.
#[derive(Deserialize, Serialize)]
struct Object {
    #[serde(flatten)]
    config: RepositoryConfig,
    /// Repositories from before it was written have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
    #[serde(flatten)]
    unknown: BTreeMap<String, serde_json::Value>,
}

/// The part that tells whether the rest can be read at all.
#[derive(Deserialize)]
struct FormatOnly {
    format: u16,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("format {found} is newer than {FORMAT_VERSION}")]
    Newer { found: u16 },
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("its checksum does not match its content")]
    Checksum,
    #[error("it has no checksum, but a field that nobody knows: `{0}`")]
    Unknown(String),
    #[error("it is the configuration of another generation")]
    Generation,
}

/// What stands for the checksum while it is computed.
const NO_CHECKSUM: &str = "0000000000000000000000000000000000000000000000000000000000000000";

impl RepositoryConfig {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, ConfigError> {
        let object = Object { config: self.clone(), checksum: Some(NO_CHECKSUM.to_owned()), unknown: BTreeMap::new() };
        let text = serde_json::to_string_pretty(&object)? + "\n";
        Ok(text.replacen(NO_CHECKSUM, &checksum(&text), 1).into_bytes())
    }

    pub(crate) fn decode(bytes: &[u8], generation: u32) -> Result<Self, ConfigError> {
        let FormatOnly { format: found } = serde_json::from_slice(bytes)?;
        if found > FORMAT_VERSION {
            return Err(ConfigError::Newer { found });
        }
        let Object { config, checksum: written, unknown } = serde_json::from_slice(bytes)?;
        match (written, unknown.into_keys().next()) {
            (Some(written), _) => {
                let blank = String::from_utf8_lossy(bytes).replacen(&written, NO_CHECKSUM, 1);
                if checksum(&blank) != written {
                    return Err(ConfigError::Checksum);
                }
            }
            (None, Some(field)) => return Err(ConfigError::Unknown(field)),
            (None, None) => {}
        }
        if config.generation != generation || config.format == 0 {
            return Err(ConfigError::Generation);
        }
        Ok(config)
    }
}

fn checksum(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RepositoryConfig {
        RepositoryConfig {
            format: 1,
            id: RepositoryId::new([7; 16]),
            generation: 3,
            created_at: Micros::new(1_795_259_647_658_242),
            recipients: vec!["age1kla6zc8hv3305j4e8wr9ecppt65d007xxfg7gwc9nyfjytwqxpaquw8x3c".parse().unwrap()],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let config = config();
        assert_eq!(RepositoryConfig::decode(&config.encode().unwrap(), 3).unwrap(), config);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = config().encode().unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(RepositoryConfig::decode(&damaged, 3).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn an_earlier_one_without_a_checksum_is_read() {
        let config = config();
        let bytes = serde_json::to_vec_pretty(&config).unwrap();
        assert_eq!(RepositoryConfig::decode(&bytes, 3).unwrap(), config);
        assert!(matches!(RepositoryConfig::decode(&bytes, 2), Err(ConfigError::Generation)));
        let newer = String::from_utf8(bytes).unwrap().replace("\"format\": 1", "\"format\": 2, \"new\": 1");
        assert!(matches!(RepositoryConfig::decode(newer.as_bytes(), 3), Err(ConfigError::Newer { found: 2 })));
    }
}
