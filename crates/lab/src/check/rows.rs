//! Comparing messages, attachments and orders with the journal, row by row.

use std::collections::HashMap;
use std::time::SystemTime;

use futures_util::TryStreamExt;
use futures_util::pin_mut;
use tokio_postgres::{Error, Transaction};

use super::{Judge, describe};
use crate::journal::{Kind, Outcome};
use crate::operation::{
    attachment_hash, message_digest, operation_of_body, operation_of_key, operation_of_object_key, order_digest,
};
use crate::report::Problem;
use crate::writer::micros;

impl Judge<'_> {
    pub(super) async fn look_at_messages(&mut self, transaction: &Transaction<'_>) -> Result<(), Error> {
        let known_ids = self.acknowledged_ids(Kind::Message);
        let query = "select id, conversation_id, seq, sender_id, sent_at, kind, reply_to, body from messages
            where id > $1";
        let rows = transaction.query_raw(query, [self.load.messages]).await?;
        pin_mut!(rows);
        while let Some(row) = rows.try_next().await? {
            let (id, conversation, seq, sender): (i64, i64, i64, i64) =
                (row.get(0), row.get(1), row.get(2), row.get(3));
            let sent_us = micros(row.get::<_, SystemTime>(4));
            let reply_to = row.get::<_, Option<i64>>(6).unwrap_or(0);
            let body: &str = row.get(7);
            self.written.push((conversation, seq, id, sent_us));
            let named = operation_of_body(body).and_then(|operation| self.find(operation, Kind::Message));
            let Some(position) = named.or_else(|| known_ids.get(&id).copied()) else {
                self.report.add(Problem::Invented, || {
                    format!("message {id}, number {seq} of conversation {conversation}, was written by nobody")
                });
                continue;
            };
            if self.is_there_twice(position, || format!("message {id}")) {
                continue;
            }
            let entry = &self.journal.entries()[position];
            let mut same = message_digest(conversation, sender, row.get(5), body) == entry.digest;
            if let Outcome::Acknowledged(answer) = entry.outcome {
                same &= (answer.id, answer.seq, answer.row_us, answer.reply_to) == (id, seq, sent_us, reply_to);
            }
            if !same {
                self.report.add(Problem::Altered, || format!("{} is there as message {id}", describe(entry)));
            }
        }
        Ok(())
    }

    pub(super) async fn look_at_attachments(&mut self, transaction: &Transaction<'_>) -> Result<(), Error> {
        let query = "select id, object_key, sha256 from attachments where id > $1";
        let rows = transaction.query_raw(query, [self.load.attachments]).await?;
        pin_mut!(rows);
        while let Some(row) = rows.try_next().await? {
            let (id, key, hash): (i64, &str, &[u8]) = (row.get(0), row.get(1), row.get(2));
            let operation = operation_of_object_key(key);
            let position = operation.and_then(|operation| self.find(operation, Kind::Message));
            let Some((position, operation)) = position.zip(operation) else {
                self.report.add(Problem::Invented, || format!("attachment {id} was written by nobody"));
                continue;
            };
            let entry = &self.journal.entries()[position];
            if std::mem::replace(&mut self.attached[position], true) || !entry.attachment {
                self.report.add(Problem::Invented, || format!("attachment {id} is one too many"));
                continue;
            }
            let other_id = matches!(entry.outcome, Outcome::Acknowledged(answer) if answer.attachment != id);
            if other_id || hash != attachment_hash(operation) {
                self.report.add(Problem::Altered, || format!("attachment {id} of {}", describe(entry)));
            }
        }
        for (position, entry) in self.journal.entries().iter().enumerate() {
            let (message, attachment) = (self.present[position], self.attached[position]);
            if entry.attachment && message != attachment {
                let missing = if message { "its attachment" } else { "itself" };
                self.report.add(Problem::Torn, || format!("{} is there without {missing}", describe(entry)));
            }
        }
        Ok(())
    }

    pub(super) async fn look_at_orders(&mut self, transaction: &Transaction<'_>) -> Result<(), Error> {
        let known_ids = self.acknowledged_ids(Kind::Order);
        let query = "select id, user_id, coalesce(conversation_id, 0), amount::text, currency::text,
            idempotency_key::text, created_at from orders where id > $1";
        let rows = transaction.query_raw(query, [self.load.orders]).await?;
        pin_mut!(rows);
        while let Some(row) = rows.try_next().await? {
            let (id, user, conversation): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
            let (amount, currency, key): (&str, &str, &str) = (row.get(3), row.get(4), row.get(5));
            let created_us = micros(row.get::<_, SystemTime>(6));
            let named = operation_of_key(key).and_then(|operation| self.find(operation, Kind::Order));
            let Some(position) = named.or_else(|| known_ids.get(&id).copied()) else {
                self.report.add(Problem::Invented, || format!("order {id} was written by nobody"));
                continue;
            };
            if self.is_there_twice(position, || format!("order {id}")) {
                continue;
            }
            let entry = &self.journal.entries()[position];
            let mut same = named.is_some() && order_digest(conversation, user, amount, currency) == entry.digest;
            if let Outcome::Acknowledged(answer) = entry.outcome {
                same &= (answer.id, answer.row_us) == (id, created_us);
            }
            if !same {
                self.report.add(Problem::Altered, || format!("{} is there as order {id}", describe(entry)));
            }
        }
        Ok(())
    }

    /// The entry with this operation, if it is of this kind.
    fn find(&self, operation: u64, kind: Kind) -> Option<usize> {
        self.journal.position(operation).filter(|position| self.journal.entries()[*position].kind == kind)
    }

    /// For rows that no longer say which operation wrote them.
    fn acknowledged_ids(&self, kind: Kind) -> HashMap<i64, usize> {
        let entries = self.journal.entries().iter().enumerate().filter(|(_, entry)| entry.kind == kind);
        entries
            .filter_map(|(position, entry)| match entry.outcome {
                Outcome::Acknowledged(answer) => Some((answer.id, position)),
                Outcome::InDoubt | Outcome::Rejected => None,
            })
            .collect()
    }

    /// Notes that an entry is there; if it was there before, the row is one too many.
    fn is_there_twice(&mut self, position: usize, row: impl FnOnce() -> String) -> bool {
        if self.present[position] {
            let entry = &self.journal.entries()[position];
            self.report.add(Problem::Invented, || format!("{} repeats {}", row(), describe(entry)));
            return true;
        }
        self.mark_present(position);
        false
    }
}
