//! One writer: a connection, and one write after the other on it.
//!
//! *Order*: a write is in the journal as attempted before its bytes are sent, and as acknowledged after the commit
//! returned. *Retries*: only an order in doubt is sent again, under the same idempotency key.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio_postgres::error::Severity;
use tokio_postgres::{Client, Row, Statement};

use crate::connection::connect;
use crate::error::LabError;
use crate::histogram::Histogram;
use crate::journal::{Acknowledgement, Kind, Record};
use crate::operation::{Content, Operation, amount, attachment_hash, idempotency_key, object_key};
use crate::run::{OnLoss, Shared};

/// How long a write may still take once the run is over; then it is in doubt.
const GRACE: Duration = Duration::from_secs(5);
/// How long to wait between two attempts to connect again.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(100);

/// Allocates the next number of the conversation, which locks it until the commit, so numbers, ids, times and commits
/// have one order; writes the message; moves the sender's read marker. `{attachment}` adds the attachment.
const SEND: &str = "
with c as (update conversations set last_seq = last_seq + 1 where id = $1 returning last_seq),
m as (insert into messages (id, conversation_id, seq, sender_id, sent_at, kind, reply_to, edited_at, body)
      select nextval('messages_id'), $1, c.last_seq, $2, clock_timestamp(), $3,
        (select r.id from messages r where r.conversation_id = $1 and r.seq = c.last_seq - $4), null, $5
      from c returning id, seq, sent_at, reply_to),
r as (update read_markers set last_read_seq = greatest(last_read_seq, m.seq),
        updated_at = greatest(updated_at + interval '1 microsecond', clock_timestamp())
      from m where read_markers.conversation_id = $1 and read_markers.user_id = $2 returning updated_at)
{attachment}
select m.id, m.seq, m.sent_at, m.reply_to, r.updated_at, {attachment_id} from m left join r on true";

const ATTACH: &str = ", a as (
  insert into attachments (id, message_id, object_key, mime, bytes, sha256, enc_key, width, height, created_at)
  select nextval('attachments_id'), m.id, $6, 'image/webp', 100000 + m.id % 1000000, $7, $7, 1280, 720, m.sent_at
  from m returning id)";

const MARK: &str = "
update read_markers
set last_read_seq = greatest(last_read_seq, (select last_seq from conversations where id = $1)),
  updated_at = greatest(updated_at + interval '1 microsecond', clock_timestamp())
where conversation_id = $1 and user_id = $2
returning last_read_seq, updated_at";

const ORDER: &str = "
with o as (
  insert into orders (id, user_id, conversation_id, amount, currency, status, idempotency_key, created_at, meta)
  values (nextval('orders_id'), $1, $2, $3::text::numeric, $4::text, 'paid', $5::text::uuid, clock_timestamp(),
    '{\"channel\": \"app\"}')
  on conflict (idempotency_key) do nothing returning id, created_at)
select id, created_at from o
union all select id, created_at from orders where idempotency_key = $5::text::uuid
limit 1";

/// A connection with its statements.
#[derive(Debug)]
pub(crate) struct Session {
    client: Client,
    send: Statement,
    send_with_attachment: Statement,
    mark: Statement,
    order: Statement,
}

/// How a write ended.
enum End {
    Acknowledged(Acknowledgement),
    Rejected,
    /// The connection is lost, or the run was over before the answer came.
    InDoubt,
}

impl Session {
    pub(crate) async fn open(config: &tokio_postgres::Config) -> Result<Self, LabError> {
        let client = connect(config).await?;
        let plain = SEND.replace("{attachment}", "").replace("{attachment_id}", "null::bigint");
        let attaching = SEND.replace("{attachment}", ATTACH).replace("{attachment_id}", "(select id from a)");
        let failed = LabError::database("prepare the writes");
        Ok(Self {
            send: client.prepare(&plain).await.map_err(&failed)?,
            send_with_attachment: client.prepare(&attaching).await.map_err(&failed)?,
            mark: client.prepare(MARK).await.map_err(&failed)?,
            order: client.prepare(ORDER).await.map_err(&failed)?,
            client,
        })
    }

    /// One transaction: it is acknowledged when this returns.
    async fn write(&self, operation: &Operation) -> Result<Option<Acknowledgement>, tokio_postgres::Error> {
        let (conversation, user) = (&operation.conversation, &operation.user);
        let row = match &operation.content {
            Content::Message { kind, reply_distance, body } if operation.has_attachment() => {
                let (key, hash) = (object_key(operation.number), attachment_hash(operation.number));
                let hash: &[u8] = &hash;
                let statement = &self.send_with_attachment;
                self.client.query_opt(statement, &[conversation, user, kind, reply_distance, body, &key, &hash]).await?
            }
            Content::Message { kind, reply_distance, body } => {
                self.client.query_opt(&self.send, &[conversation, user, kind, reply_distance, body]).await?
            }
            Content::Marker => self.client.query_opt(&self.mark, &[conversation, user]).await?,
            Content::Order { amount_cents, currency } => {
                let (amount, key) = (amount(*amount_cents), idempotency_key(operation.number));
                self.client.query_opt(&self.order, &[user, conversation, &amount, currency, &key]).await?
            }
        };
        let at_us = now_us();
        Ok(row.map(|row| acknowledgement(operation.kind(), at_us, &row)))
    }
}

fn acknowledgement(kind: Kind, at_us: i64, row: &Row) -> Acknowledgement {
    let time = |column: usize| row.get::<_, Option<SystemTime>>(column).map_or(0, micros);
    match kind {
        Kind::Message => Acknowledgement {
            at_us,
            id: row.get(0),
            seq: row.get(1),
            row_us: time(2),
            reply_to: row.get::<_, Option<i64>>(3).unwrap_or(0),
            marker_us: time(4),
            attachment: row.get::<_, Option<i64>>(5).unwrap_or(0),
        },
        Kind::Marker => Acknowledgement { at_us, seq: row.get(0), marker_us: time(1), ..Default::default() },
        Kind::Order => Acknowledgement { at_us, id: row.get(0), row_us: time(1), ..Default::default() },
    }
}

/// Writes until the run is over or the server is lost.
pub(crate) async fn work(shared: Arc<Shared>, number: usize, session: Session) -> Result<Histogram, LabError> {
    let mut random = SmallRng::seed_from_u64(shared.seed.wrapping_add(number as u64));
    let mut latencies = Histogram::new();
    let mut session = Some(session);
    let mut again: Option<Operation> = None;
    let start = Instant::now();
    let mut written: u32 = 0;
    while !shared.is_over() {
        let Some(current) = &session else {
            session = reconnect(&shared).await;
            continue;
        };
        if let Some(interval) = shared.interval {
            shared.sleep_until(start + interval * written + interval * number as u32 / shared.writers as u32).await;
        }
        let operation = again.take().unwrap_or_else(|| {
            Operation::random(shared.next_operation(), &shared.population, &shared.words, &mut random)
        });
        written = written.wrapping_add(1);
        let sent = Instant::now();
        match attempt(&shared, current, &operation).await? {
            End::Acknowledged(_) => latencies.record(sent.elapsed()),
            End::Rejected => {}
            End::InDoubt => {
                session = None;
                if shared.on_loss == OnLoss::Stop {
                    break;
                }
                again = (operation.kind() == Kind::Order).then_some(operation);
            }
        }
    }
    Ok(latencies)
}

/// Sends one write and writes down what becomes of it.
async fn attempt(shared: &Shared, session: &Session, operation: &Operation) -> Result<End, LabError> {
    shared.journal.append(&Record::Attempt(operation.entry(now_us())))?;
    shared.attempted.fetch_add(1, Ordering::Relaxed);
    let end = tokio::select! {
        biased;
        result = session.write(operation) => match result {
            Ok(Some(acknowledgement)) => End::Acknowledged(acknowledgement),
            // An order whose key is there, written by a backend that has not ended yet: ask again.
            Ok(None) if operation.kind() == Kind::Order => End::InDoubt,
            // There was no row to update.
            Ok(None) => End::Rejected,
            Err(error) if is_refusal(&error) => End::Rejected,
            Err(_) => { shared.lost.store(true, Ordering::Relaxed); End::InDoubt }
        },
        () = shared.over_for(GRACE) => End::InDoubt,
    };
    let (number, kind) = (operation.number, operation.kind());
    let counter = match &end {
        End::Acknowledged(acknowledgement) => {
            let acknowledgement = *acknowledgement;
            shared.journal.append(&Record::Acknowledged { operation: number, kind, acknowledgement })?;
            &shared.acknowledged
        }
        End::Rejected => {
            shared.journal.append(&Record::Rejected { operation: number, kind, at_us: now_us() })?;
            &shared.rejected
        }
        End::InDoubt => &shared.in_doubt,
    };
    counter.fetch_add(1, Ordering::Relaxed);
    Ok(end)
}

/// Whether the server said that the transaction is rolled back. A backend that is shut down may have committed before
/// it says so, and one that ends with FATAL too; only an ERROR in the statement itself is a clear answer.
fn is_refusal(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|error| {
        let unclear = ["57P", "58", "XX"].iter().any(|class| error.code().code().starts_with(class));
        error.parsed_severity() == Some(Severity::Error) && !unclear
    })
}

/// Tries to connect until it works or the run is over.
async fn reconnect(shared: &Shared) -> Option<Session> {
    while !shared.is_over() {
        tokio::select! {
            opened = Session::open(&shared.config) => if let Ok(session) = opened { return Some(session) },
            () = shared.over_for(Duration::ZERO) => return None,
        }
        shared.sleep_until(Instant::now() + RECONNECT_INTERVAL).await;
    }
    None
}

pub(crate) fn micros(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => since.as_micros() as i64,
        Err(before) => -(before.duration().as_micros() as i64),
    }
}

pub(crate) fn now_us() -> i64 {
    micros(SystemTime::now())
}
