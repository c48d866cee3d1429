//! One write of the platform: what is sent, and how it is found again.

use rand::Rng;
use rand::rngs::SmallRng;

use crate::journal::{Entry, Kind, Outcome};
use crate::text::Vocabulary;

/// Who is in which conversation, as `load.sql` deals them out.
#[derive(Debug)]
pub(crate) struct Population {
    pub(crate) users: i64,
    /// The number of members of each conversation; conversation 1 is at index 0.
    pub(crate) sizes: Vec<i32>,
}

/// A write that is ready to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) number: u64,
    pub(crate) conversation: i64,
    pub(crate) user: i64,
    pub(crate) content: Content,
}

/// What it writes.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Message {
        kind: i16,
        /// Answers the message this far back in the conversation; 0 is no answer.
        reply_distance: i64,
        body: String,
    },
    Marker,
    Order {
        amount_cents: i64,
        currency: &'static str,
    },
}

impl Population {
    /// A conversation, the first ones far more often than the last, and one of its members.
    fn pick(&self, random: &mut SmallRng) -> (i64, i64) {
        let index = (self.sizes.len() as f64 * random.random::<f64>().powi(3)) as usize;
        let index = index.min(self.sizes.len() - 1);
        let conversation = index as i64 + 1;
        let member = i64::from(random.random_range(0..self.sizes[index]));
        (conversation, 1 + (conversation * 7919 + member * 104_729) % self.users)
    }
}

impl Operation {
    pub(crate) fn random(number: u64, population: &Population, words: &Vocabulary, random: &mut SmallRng) -> Self {
        let (conversation, user) = population.pick(random);
        let content = match random.random_range(0..100) {
            0..75 => Content::Message {
                kind: if random.random_bool(0.86) { 0 } else { random.random_range(1..=5) },
                reply_distance: if random.random_bool(0.08) { random.random_range(1..=50) } else { 0 },
                body: format!("{}{}", words.message(random), mark(number)),
            },
            75..95 => Content::Marker,
            _ => Content::Order {
                amount_cents: random.random_range(100..1_000_000),
                currency: ["CNY", "USD", "EUR"][random.random_range(0..3)],
            },
        };
        Self { number, conversation, user, content }
    }

    pub(crate) fn kind(&self) -> Kind {
        match self.content {
            Content::Message { .. } => Kind::Message,
            Content::Marker => Kind::Marker,
            Content::Order { .. } => Kind::Order,
        }
    }

    /// Pictures, films and sounds have their metadata in `attachments`.
    pub(crate) fn has_attachment(&self) -> bool {
        matches!(self.content, Content::Message { kind: 1..=3, .. })
    }

    pub(crate) fn entry(&self, sent_us: i64) -> Entry {
        let digest = match &self.content {
            Content::Message { kind, body, .. } => message_digest(self.conversation, self.user, *kind, body),
            Content::Marker => [0; 16],
            Content::Order { amount_cents, currency } => {
                order_digest(self.conversation, self.user, &amount(*amount_cents), currency)
            }
        };
        Entry {
            operation: self.number,
            kind: self.kind(),
            conversation: self.conversation,
            user: self.user,
            digest,
            attachment: self.has_attachment(),
            sent_us,
            outcome: Outcome::InDoubt,
        }
    }
}

pub(crate) fn amount(cents: i64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

/// The end of a message's body, by which a write in doubt is found again.
fn mark(operation: u64) -> String {
    format!(" #{operation:016x}")
}

/// The operation that a body ends with.
pub(crate) fn operation_of_body(body: &str) -> Option<u64> {
    let (_, hex) = body.rsplit_once(" #")?;
    (hex.len() == 16).then(|| u64::from_str_radix(hex, 16).ok()).flatten()
}

/// The object key of an attachment, which names the operation too.
pub(crate) fn object_key(operation: u64) -> String {
    format!("media/{operation:016x}")
}

/// The operation that an object key names.
pub(crate) fn operation_of_object_key(key: &str) -> Option<u64> {
    u64::from_str_radix(key.strip_prefix("media/").filter(|hex| hex.len() == 16)?, 16).ok()
}

/// What the attachment's content would hash to.
pub(crate) fn attachment_hash(operation: u64) -> [u8; 32] {
    *blake3::hash(&operation.to_le_bytes()).as_bytes()
}

const KEY_PREFIX: &str = "686f6c64-6661-7374-";

/// The idempotency key of an order: the letters `holdfast`, then the operation.
pub(crate) fn idempotency_key(operation: u64) -> String {
    format!("{KEY_PREFIX}{:04x}-{:012x}", operation >> 48, operation & 0xffff_ffff_ffff)
}

/// The operation that an idempotency key names.
pub(crate) fn operation_of_key(key: &str) -> Option<u64> {
    let (high, low) = key.strip_prefix(KEY_PREFIX)?.split_once('-')?;
    u64::from_str_radix(&format!("{high}{low}"), 16).ok()
}

pub(crate) fn message_digest(conversation: i64, user: i64, kind: i16, body: &str) -> [u8; 16] {
    digest(&[&conversation.to_le_bytes(), &user.to_le_bytes(), &kind.to_le_bytes(), body.as_bytes()])
}

pub(crate) fn order_digest(conversation: i64, user: i64, amount: &str, currency: &str) -> [u8; 16] {
    digest(&[&conversation.to_le_bytes(), &user.to_le_bytes(), amount.as_bytes(), b" ", currency.as_bytes()])
}

fn digest(parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let mut digest = [0; 16];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_names_its_operation() {
        for operation in [0, 7, 0x1234_5678_9abc_def0, u64::MAX] {
            assert_eq!(operation_of_body(&format!("any # text{}", mark(operation))), Some(operation));
            assert_eq!(operation_of_object_key(&object_key(operation)), Some(operation));
            assert_eq!(operation_of_key(&idempotency_key(operation)), Some(operation));
            assert_eq!(idempotency_key(operation).len(), 36);
        }
        assert_eq!(operation_of_body("a text #1"), None);
        assert_eq!(operation_of_object_key("media/0123/4567"), None);
        assert_eq!(operation_of_key("00000000-0000-0000-0000-000000000000"), None);
    }

    #[test]
    fn amounts_look_as_postgresql_prints_them() {
        assert_eq!(amount(105), "1.05");
        assert_eq!(amount(999_999), "9999.99");
    }
}
