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
