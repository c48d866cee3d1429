//! What the catalogue calls relations whose pages are wrong. A help for people: nothing depends on it, so it must not cost
//! much, and may fail.

use std::collections::HashMap;
use std::time::Duration;

use holdfast_pgformat::{Relation, RelationFile};

use crate::server::relation_name;
use crate::snapshot::BackupOptions;

/// Each takes two connections.
const MOST: usize = 10;
const DEADLINE: Duration = Duration::from_secs(10);

/// Asks for each relation once, and for so many at most.
#[derive(Debug)]
pub(crate) struct RelationNames<'a> {
    options: &'a BackupOptions,
    known: HashMap<Relation, Option<String>>,
}

impl<'a> RelationNames<'a> {
    pub(crate) fn new(options: &'a BackupOptions) -> Self {
        Self { options, known: HashMap::new() }
    }

    /// As in ` (app: public.orders)`; nothing where it is not known.
    pub(crate) async fn suffix(&mut self, file: Option<RelationFile>) -> String {
        let name = match file {
            Some(file) => self.name(file).await,
            None => None,
        };
        name.map(|name| format!(" ({name})")).unwrap_or_default()
    }

    /// The name alone, if it is known.
    pub(crate) async fn name(&mut self, file: RelationFile) -> Option<String> {
        let relation = file.relation();
        if !self.known.contains_key(&relation) && self.known.len() < MOST {
            let asked = tokio::time::timeout(DEADLINE, relation_name(self.options, file)).await;
            self.known.insert(relation, asked.ok().flatten());
        }
        self.known.get(&relation).cloned().flatten()
    }
}
