use serde::{Deserialize, Serialize};

/// A moment as microseconds since 1970-01-01 00:00 UTC, the resolution PostgreSQL has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micros(i64);

/// 2000-01-01, PostgreSQL's day zero, in seconds since 1970.
const POSTGRESQL_EPOCH_SECONDS: i64 = 946_684_800;

impl Micros {
    pub const fn new(value: i64) -> Self {
        Self(value)
    }

    pub const fn get(self) -> i64 {
        self.0
    }

    /// From a `TimestampTz` as PostgreSQL stores it: microseconds since 2000-01-01 UTC.
    pub const fn from_postgresql(value: i64) -> Self {
        Self(value.saturating_add(POSTGRESQL_EPOCH_SECONDS * 1_000_000))
    }

    pub const fn to_postgresql(self) -> i64 {
        self.0.saturating_sub(POSTGRESQL_EPOCH_SECONDS * 1_000_000)
    }
}
