//! What must hold whatever was written: numbers without gap, one order, references that lead somewhere.

use std::collections::HashSet;

use tokio_postgres::{Error, Transaction};

use super::{Depth, Judge};
use crate::load::FINGERPRINT;
use crate::report::Problem;

/// Every reference: table, columns, referenced table, its columns, and how to see rows written after the load.
const REFERENCES: [(&str, &str, &str, &str, Option<&str>); 10] = [
    ("devices", "user_id", "users", "id", None),
    ("members", "conversation_id", "conversations", "id", None),
    ("members", "user_id", "users", "id", None),
    ("read_markers", "conversation_id, user_id", "members", "conversation_id, user_id", None),
    ("messages", "conversation_id", "conversations", "id", Some("messages")),
    ("messages", "sender_id", "users", "id", Some("messages")),
    ("messages", "reply_to", "messages", "id", Some("messages")),
    ("attachments", "message_id", "messages", "id", Some("attachments")),
    ("orders", "user_id", "users", "id", Some("orders")),
    ("orders", "conversation_id", "conversations", "id", Some("orders")),
];

/// The constraints that the references and the keys have: 10 foreign, 8 primary, 3 unique.
const CONSTRAINTS: [(&str, i64); 3] = [("f", 10), ("p", 8), ("u", 3)];

impl Judge<'_> {
    pub(super) async fn look_at_structure(&mut self, transaction: &Transaction<'_>) -> Result<(), Error> {
        self.look_at_numbers(transaction).await?;
        self.look_at_references(transaction).await?;
        self.look_at_duplicates(transaction).await?;
        self.look_at_constraints(transaction).await?;
        if self.options.depth == Depth::Full {
            self.look_at_load(transaction).await?;
        }
        Ok(())
    }

    async fn look_at_numbers(&mut self, transaction: &Transaction<'_>) -> Result<(), Error> {
        let query = match self.options.depth {
            Depth::Full => {
                "select c.id, c.last_seq, coalesce(m.n, 0), coalesce(m.lo, 1), coalesce(m.hi, 0)
                 from conversations c left join (
                   select conversation_id, count(*) n, min(seq) lo, max(seq) hi from messages group by 1
                 ) m on m.conversation_id = c.id
                 where coalesce(m.n, 0) <> c.last_seq or coalesce(m.lo, 1) <> 1 or coalesce(m.hi, 0) <> c.last_seq"
            }
            Depth::Written => {
                "select c.id, c.last_seq, m.n, m.lo, m.hi
                 from conversations c join (
                   select conversation_id, count(*) n, min(seq) lo, max(seq) hi from messages
                   where id > $1 group by 1
                 ) m on m.conversation_id = c.id
                 where m.hi - m.lo + 1 <> m.n or m.hi <> c.last_seq"
            }
        };
        let load = [self.load.messages];
        let parameters = if self.options.depth == Depth::Full { &[][..] } else { &load[..] };
        let parameters: Vec<_> =
            parameters.iter().map(|value| value as &(dyn tokio_postgres::types::ToSql + Sync)).collect();
        for row in transaction.query(query, &parameters).await? {
            let [id, last, count, low, high]: [i64; 5] = std::array::from_fn(|column| row.get(column));
            self.report.add(Problem::Gap, || {
                format!("conversation {id} counts to {last}, and has {count} messages from {low} to {high}")
            });
        }
        let beyond = "select count(*) from read_markers r join conversations c on c.id = r.conversation_id
            where r.last_read_seq > c.last_seq";
        let count: i64 = transaction.query_one(beyond, &[]).await?.get(0);
        if count > 0 {
            self.report.add_many(Problem::Disorder, count as u64, || {
                format!("{count} read markers are beyond the end of their conversation")
            });
        }
        let astray = "select count(*) from messages m join messages r on r.id = m.reply_to
            where m.id > $1 and r.conversation_id <> m.conversation_id";
        let count: i64 = transaction.query_one(astray, &[&self.load.messages]).await?.get(0);
        if count > 0 {
            self.report.add_many(Problem::Disorder, count as u64, || {
                format!("{count} messages answer one of another conversation")
            });
        }
        Ok(())
    }

    async fn look_at_references(&mut self, transaction: &Transaction<'_>) -> Result<(), Error> {
        for (table, columns, target, target_columns, written) in REFERENCES {
            let pairs = columns.split(", ").zip(target_columns.split(", "));
            let equal: Vec<String> = pairs.map(|(column, key)| format!("b.{key} = a.{column}")).collect();
            let filled: Vec<String> = columns.split(", ").map(|column| format!("a.{column} is not null")).collect();
            let since = match (self.options.depth, written) {
                (Depth::Full, _) => 0,
                (Depth::Written, None) => continue,
                (Depth::Written, Some("messages")) => self.load.messages,
                (Depth::Written, Some("attachments")) => self.load.attachments,
                (Depth::Written, Some(_)) => self.load.orders,
            };
            let later = if since > 0 { format!("and a.id > {since}") } else { String::new() };
            let query = format!(
                "select count(*) from {table} a where {} {later} and not exists (select from {target} b where {})",
                filled.join(" and "),
                equal.join(" and ")
            );
            let count: i64 = transaction.query_one(&query, &[]).await?.get(0);
            if count > 0 {
                self.report.add_many(Problem::Dangling, count as u64, || {
                    format!("{count} rows of {table} ({columns}) refer to nothing in {target}")
                });
            }
        }
        Ok(())
    }

    async fn look_at_duplicates(&mut self, transaction: &Transaction<'_>) -> Result<(), Error> {
        let query = "select idempotency_key::text, count(*) from orders group by 1 having count(*) > 1";
        for row in transaction.query(query, &[]).await? {
            let (key, count): (&str, i64) = (row.get(0), row.get(1));
            self.report.add_many(Problem::Duplicate, count as u64 - 1, || format!("{count} orders have the key {key}"));
        }
        Ok(())
    }

    async fn look_at_constraints(&mut self, transaction: &Transaction<'_>) -> Result<(), Error> {
        let query = "select contype::text, count(*) from pg_constraint k join pg_class c on c.oid = k.conrelid
            where k.convalidated and c.relname in ('users', 'devices', 'conversations', 'members', 'messages',
              'read_markers', 'attachments', 'orders') and c.relnamespace = 'public'::regnamespace group by 1";
        let rows = transaction.query(query, &[]).await?;
        for (kind, expected) in CONSTRAINTS {
            let found = rows.iter().find(|row| row.get::<_, &str>(0) == kind).map_or(0, |row| row.get::<_, i64>(1));
            if found < expected {
                self.report.add_many(Problem::Constraint, (expected - found) as u64, || {
                    format!("{found} of {expected} constraints of type {kind}")
                });
            }
        }
        Ok(())
    }

    async fn look_at_load(&mut self, transaction: &Transaction<'_>) -> Result<(), Error> {
        let counts = [
            ("users", None, self.load.users),
            ("devices", None, self.load.devices),
            ("conversations", None, self.load.conversations),
            ("members", None, self.load.members),
            ("read_markers", None, self.load.members),
            ("messages", Some(self.load.messages), self.load.messages),
            ("attachments", Some(self.load.attachments), self.load.attachments),
            ("orders", Some(self.load.orders), self.load.orders),
        ];
        for (table, last, expected) in counts {
            let range = last.map(|last| format!("where id <= {last}")).unwrap_or_default();
            let found: i64 = transaction.query_one(&format!("select count(*) from {table} {range}"), &[]).await?.get(0);
            if found != expected {
                self.report.add(Problem::LoadChanged, || format!("{table} has {found} of {expected} rows"));
            }
        }
        let query = format!("select {FINGERPRINT} from messages where id <= $1");
        let found: String = transaction.query_one(&query, &[&self.load.messages]).await?.get(0);
        if found != self.load.fingerprint {
            self.report.add(Problem::LoadChanged, || "the loaded messages have changed".to_owned());
        }
        Ok(())
    }

    /// Numbers, ids and times of what was written have one order in each conversation.
    pub(super) fn check_order(&mut self) {
        self.written.sort_unstable();
        let mut broken = HashSet::new();
        for pair in self.written.windows(2) {
            let [(conversation, seq, id, sent), (next_conversation, next_seq, next_id, next_sent)] = pair else {
                continue;
            };
            if conversation != next_conversation {
                continue;
            }
            if next_seq == seq || next_id <= id || next_sent < sent {
                broken.insert(*conversation);
                self.report.add(Problem::Disorder, || {
                    format!("messages {id} and {next_id}, numbers {seq} and {next_seq} of conversation {conversation}")
                });
            }
        }
    }
}
