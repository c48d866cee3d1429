//! Comparing the read markers with the journal.
//!
//! A marker is one row that is written again and again, and each write gives it a later time. So the row's time tells
//! which write was the last to reach it; all earlier ones are in it, all later ones are lost.

use std::collections::HashMap;
use std::time::SystemTime;

use futures_util::TryStreamExt;
use futures_util::pin_mut;
use jiff::civil::date;
use jiff::tz::TimeZone;
use tokio_postgres::{Error, Transaction};

use super::{Judge, describe};
use crate::journal::{Kind, Outcome};
use crate::report::Problem;
use crate::writer::micros;

/// The writes to one marker, by their position in the journal.
#[derive(Default)]
struct Writes {
    positions: Vec<usize>,
}

impl Judge<'_> {
    pub(super) async fn look_at_markers(&mut self, transaction: &Transaction<'_>) -> Result<(), Error> {
        let mut writes: HashMap<(i64, i64), Writes> = HashMap::new();
        for (position, entry) in self.journal.entries().iter().enumerate() {
            if entry.kind != Kind::Order {
                writes.entry((entry.conversation, entry.user)).or_default().positions.push(position);
            }
        }
        // All loaded markers are from January 2025.
        let loaded_until = date(2025, 2, 1).to_zoned(TimeZone::UTC).expect("it is a date").timestamp().as_microsecond();
        let query = "select conversation_id, user_id, last_read_seq, updated_at from read_markers";
        let rows = transaction.query_raw(query, Vec::<i64>::new()).await?;
        pin_mut!(rows);
        while let Some(row) = rows.try_next().await? {
            let (conversation, user, seq): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
            let updated_us = micros(row.get::<_, SystemTime>(3));
            let is_loaded = updated_us < loaded_until;
            match writes.remove(&(conversation, user)) {
                Some(writes) => self.judge_marker(&writes, is_loaded, updated_us, seq),
                None if is_loaded => {}
                None => self.report.add(Problem::Invented, || {
                    format!("the read marker of user {user} in conversation {conversation} was moved by nobody")
                }),
            }
        }
        // What is left in `writes` has no row at all, so it stays marked as not present.
        Ok(())
    }

    fn judge_marker(&mut self, writes: &Writes, is_loaded: bool, updated_us: i64, seq: i64) {
        let entries = self.journal.entries();
        let mut explained = is_loaded;
        let mut in_doubt = Vec::new();
        for &position in &writes.positions {
            let entry = &entries[position];
            let Outcome::Acknowledged(answer) = entry.outcome else {
                if entry.outcome == Outcome::InDoubt {
                    in_doubt.push(position);
                }
                continue;
            };
            let reached = answer.marker_us != 0 && answer.marker_us <= updated_us;
            if answer.marker_us == updated_us {
                explained = true;
                let other_seq = match entry.kind {
                    Kind::Marker => answer.seq != seq,
                    // The sender may have read further than the message's own number only if somebody was ahead.
                    Kind::Message | Kind::Order => answer.seq > seq,
                };
                if other_seq {
                    self.report.add(Problem::Altered, || format!("{}: it stands at {seq}", describe(entry)));
                }
            }
            if entry.kind == Kind::Marker {
                self.present[position] = reached;
            } else if self.present[position] && !reached && answer.marker_us != 0 {
                self.report.add(Problem::Torn, || format!("{} is there without the sender's marker", describe(entry)));
            }
        }
        if explained {
            return;
        }
        // Some write without an answer must have done it. A message that did is there; else it was a marker.
        if in_doubt.iter().any(|position| entries[*position].kind == Kind::Message && self.present[*position]) {
            return;
        }
        if let Some(position) = in_doubt.iter().find(|position| entries[**position].kind == Kind::Marker) {
            self.present[*position] = true;
            return;
        }
        let Some(first) = writes.positions.first().map(|position| &entries[*position]) else { return };
        self.report.add(Problem::Invented, || {
            format!("the read marker of user {} in conversation {} was moved by nobody", first.user, first.conversation)
        });
    }
}
