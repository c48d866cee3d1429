-- The data set of the lab, of the same shape as the one that other systems were measured with. Words in braces are
-- filled in by load.rs. Unlike there, sequence numbers have no gap, ids and times follow them, answers answer a real
-- message, and nothing is dated later than 2025.
create table words(rank int primary key, w text not null);
insert into words
select r, (select string_agg(substr('bcdfghjklmnprstvwz', 1 + (random() * 17)::int, 1)
                  || substr('aeiouaeio', 1 + (random() * 8)::int, 1)
                  || case when random() < 0.25 then substr('nrstlm', 1 + (random() * 5)::int, 1) else '' end, '')
           from generate_series(1, least(5, 1 + (ln(r + 1) / 3.2 + random() * 1.4 + r * 0)::int)))
from generate_series(1, {words}) r;
create table cjk(rank int primary key, w text not null);
insert into cjk
select r, (select string_agg(chr(19968 + (power(random(), 2) * 4000)::int + g * 0), '')
           from generate_series(1, 1 + (random() * 1.6)::int + r * 0) g)
from generate_series(1, {cjk}) r;

-- Chunks of text that the messages are cut from; Zipf choice of words, one chunk in eight is Chinese.
create table pool_raw as
select c, i, case when c % 8 = 0 then 1 + floor(power({cjk}::float8, random()))::int % {cjk}
                  else 1 + floor(power({words}::float8, random()))::int % {words} end as rank
from generate_series(0, {pool} - 1) c, generate_series(1, 260) i;
create table pool(id int primary key, chunk text not null);
insert into pool
select c, left(string_agg(coalesce(w.w, k.w),
    case when p.c % 8 = 0 then '' when p.i % 11 = 0 then ', ' when p.i % 7 = 0 then '. ' else ' ' end order by i), 1200)
from pool_raw p
left join words w on p.c % 8 <> 0 and w.rank = p.rank
left join cjk k on p.c % 8 = 0 and k.rank = p.rank
group by c;
drop table pool_raw;

create table users(
  id bigint not null, username text not null, display_name text not null, phone text not null,
  created_at timestamptz not null, password_hash bytea not null, settings jsonb not null);
insert into users
select u, w.w || u, initcap(w.w) || ' ' || initcap(w2.w), '+86' || (13000000000 + (random() * 6999999999)::bigint),
  timestamptz '2022-01-01' + u * interval '90 seconds', decode(md5(random()::text) || md5(random()::text), 'hex'),
  jsonb_build_object('lang', (array['en','zh','ru','es'])[1 + (random() * 3)::int],
                     'theme', (array['dark','light'])[1 + random()::int], 'mute', random() < 0.2)
from generate_series(1::bigint, {users}) u
join words w on w.rank = 1 + (u * 7919) % {words}
join words w2 on w2.rank = 1 + (u * 104729) % {words};

create table devices(
  id bigint not null, user_id bigint not null, platform text not null, push_token text not null,
  identity_key bytea not null, last_seen timestamptz not null);
insert into devices
select u * 2 + d, u, (array['ios','android','web','desktop'])[1 + (random() * 3)::int],
  md5(random()::text) || md5(random()::text), decode(md5(random()::text) || md5(random()::text), 'hex'),
  timestamptz '2025-01-01' + random() * interval '200 days'
from generate_series(1::bigint, {users}) u, generate_series(0, 1) d where d = 0 or random() + u * 0 < 0.6;

create table conversations(
  id bigint not null, kind smallint not null, size int not null, title text, created_at timestamptz not null,
  last_seq bigint not null);
insert into conversations
select c, case when c * 2654435761 % 100 < 70 then 0 else 1 end,
  least(case when c * 2654435761 % 100 < 70 then 2 else 3 + (c * 40503 % 28)::int end, {users}),
  case when c * 2654435761 % 100 < 70 then null else left(p.chunk, 12 + (c % 20)::int) end,
  timestamptz '2022-01-01' + c * interval '60 seconds', 0
from generate_series(1::bigint, {conversations}) c join pool p on p.id = (c % {pool})::int;

create table members(
  conversation_id bigint not null, user_id bigint not null, role smallint not null, joined_at timestamptz not null,
  primary key (conversation_id, user_id));
insert into members
select c.id, 1 + (c.id * 7919 + j * 104729) % {users}, case when j = 0 then 1 else 0 end,
  c.created_at + j * interval '1 hour'
from conversations c, generate_series(0, c.size - 1) j on conflict do nothing;

-- One round of messages: which conversation each goes to, skewed to the first ones, and its place there.
create temp table slots as
select s as slot, conversation, row_number() over (partition by conversation order by s) as place,
  count(*) over (partition by conversation) as places
from (select s, 1 + floor({conversations} * power(random(), 3))::bigint as conversation
      from generate_series(0, {round} - 1) s) x;
alter table slots add primary key (slot);
analyze slots; analyze pool; analyze conversations;

create table messages(
  id bigint not null, conversation_id bigint not null, seq bigint not null, sender_id bigint not null,
  sent_at timestamptz not null, kind smallint not null, reply_to bigint, edited_at timestamptz, body text not null);
set local enable_nestloop = off; set local enable_mergejoin = off; set local join_collapse_limit = 1;
insert into messages
select g.n + 1, s.conversation, (g.n / {round}) * s.places + s.place,
  1 + (s.conversation * 7919 + floor(g.r2 * c.size)::bigint * 104729) % {users},
  timestamptz '2023-01-01' + (g.n + g.r2 * 0.9) * least(interval '2.1 seconds', interval '700 days' / {messages}),
  case when g.r1 < 0.86 then 0 else 1 + (g.r2 * 4)::int end,
  case when g.r2 < 0.08 and g.n > 200 then g.n - (g.r1 * 200)::bigint end, null,
  substr(p.chunk, g.off, g.len)
from (select n, random() r1, random() r2, 1 + (random() * 800)::int off,
        4 + least(390, exp(3.3 + 2.0 * (random() + random() + random() - 1.5)))::int len,
        (random() * ({pool} - 1))::int pid
      from generate_series(0::bigint, {messages} - 1) n offset 0) g
join slots s on s.slot = g.n % {round}
join conversations c on c.id = s.conversation
join pool p on p.id = g.pid;
set local enable_nestloop = on; set local enable_mergejoin = on;
create index messages_sender_sent on messages(sender_id, sent_at);
alter table messages add constraint messages_pkey primary key(id);
alter table messages add constraint messages_conv_seq unique(conversation_id, seq);
update conversations c set last_seq = x.places * {rounds}
from (select distinct conversation, places from slots) x where x.conversation = c.id;

create table read_markers(
  conversation_id bigint not null, user_id bigint not null, last_read_seq bigint not null,
  updated_at timestamptz not null);
insert into read_markers
select m.conversation_id, m.user_id, floor(c.last_seq * random())::bigint,
  timestamptz '2025-01-01' + random() * interval '25 days'
from members m join conversations c on c.id = m.conversation_id;

create table attachments(
  id bigint not null, message_id bigint not null, object_key text not null, mime text not null, bytes bigint not null,
  sha256 bytea not null, enc_key bytea not null, width int, height int, created_at timestamptz not null);
insert into attachments
select row_number() over (), m.id, 'media/' || md5(random()::text) || '/' || md5(random()::text),
  (array['image/jpeg','image/webp','video/mp4','audio/ogg','application/pdf'])[1 + (random() * 4)::int],
  exp(9 + 6 * random())::bigint, decode(md5(random()::text) || md5(random()::text), 'hex'),
  decode(md5(random()::text) || md5(random()::text), 'hex'),
  (random() * 4000)::int, (random() * 4000)::int, m.sent_at
from (select id, sent_at from messages where kind between 1 and 3 order by id) m;

create table orders(
  id bigint not null, user_id bigint not null, conversation_id bigint, amount numeric(12,2) not null,
  currency char(3) not null, status text not null, idempotency_key uuid not null, created_at timestamptz not null,
  meta jsonb not null);
insert into orders
select o, 1 + (random() * ({users} - 1))::bigint, 1 + (random() * ({conversations} - 1))::bigint,
  (exp(2 + 5 * random()))::numeric(12,2), (array['CNY','USD','EUR'])[1 + (random() * 2)::int],
  (array['paid','paid','paid','refunded','pending'])[1 + (random() * 4)::int], md5(o || ' ' || random())::uuid,
  timestamptz '2023-01-01' + o * interval '60 seconds',
  jsonb_build_object('sku', 'SKU-' || (random() * 9999)::int, 'qty', 1 + (random() * 5)::int,
                     'channel', (array['app','web','mini'])[1 + (random() * 2)::int])
from generate_series(1::bigint, {orders}) o;

alter table users add primary key(id), add unique(username);
alter table devices add primary key(id);
create index devices_user on devices(user_id);
alter table conversations add primary key(id);
create index members_user on members(user_id);
alter table read_markers add primary key(conversation_id, user_id);
alter table attachments add primary key(id);
create index attachments_msg on attachments(message_id);
create index attachments_sha on attachments(sha256);
alter table orders add primary key(id), add unique(idempotency_key);
create index orders_user on orders(user_id, created_at);
alter table devices add foreign key(user_id) references users(id);
alter table members add foreign key(conversation_id) references conversations(id),
  add foreign key(user_id) references users(id);
alter table read_markers add foreign key(conversation_id, user_id) references members(conversation_id, user_id);
alter table orders add foreign key(user_id) references users(id),
  add foreign key(conversation_id) references conversations(id);
alter table messages add foreign key(conversation_id) references conversations(id),
  add foreign key(sender_id) references users(id), add foreign key(reply_to) references messages(id);
alter table attachments add foreign key(message_id) references messages(id);
drop table slots, pool, words, cjk;

create sequence messages_id owned by messages.id;
create sequence attachments_id owned by attachments.id;
create sequence orders_id owned by orders.id;
select setval('messages_id', {messages}), setval('orders_id', {orders}),
  setval('attachments_id', greatest(1, (select max(id) from attachments)));

-- What was loaded, so that the judge can tell it from what was written later, and see whether it is still the same.
create table lab_load(
  load_id bigint not null, seed bigint not null, users bigint not null, devices bigint not null,
  conversations bigint not null, members bigint not null, messages bigint not null, attachments bigint not null,
  orders bigint not null, fingerprint text not null);
insert into lab_load
select {load_id}, {seed}, {users}, (select count(*) from devices), {conversations}, (select count(*) from members),
  {messages}, (select count(*) from attachments), {orders},
  (select {fingerprint} from messages where id <= {messages});
