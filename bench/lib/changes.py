"""Changes to the messaging workload, as SQL. Works on the tables of the lab and of `workload/im.sh`.

Random choices depend on a seed, so a change can be made again on a copy of the same cluster.
"""

from __future__ import annotations

from lib.cluster import DATABASE
from lib.postgres import Server

PAGE_BYTES = 8192


def pages(server: Server, seed: float, share: float = 0.0, count: int = 0) -> int:
    """Changes a share of all pages of the database, or a number of them, and as good as no other; how many it was.

    The pages are chosen at random over all tables. On each, one row is locked, which is written into the page. Updates
    would find no room in full pages, and change others and those of the indexes.
    """
    if not count:
        count = round(share * int(server.query(f"select pg_database_size('{DATABASE}')")) / PAGE_BYTES)
    tables = server.query(
        "select oid::regclass || ' ' || pg_relation_size(oid) / current_setting('block_size')::int from pg_class"
        " where relkind = 'r' and relnamespace = 'public'::regnamespace and pg_relation_size(oid) > 0 order by relname",
        DATABASE,
    )
    sizes = [(name, int(size)) for name, size in (line.split() for line in tables.splitlines())]
    total = sum(size for _, size in sizes)
    changed = 0
    for name, size in sizes:
        wanted = round(count * size / total)
        if wanted == 0:
            continue
        # A few more than wanted, as some are chosen twice.
        changed += _count(
            server,
            seed,
            f"with chosen as materialized (select distinct floor(random() * {size})::bigint as block"
            f" from generate_series(1, {wanted + wanted * wanted // max(1, size)})),"
            f" locked as (select 1 from {name} where ctid = any(array("
            f"select format('(%s,1)', block)::tid from chosen limit {wanted})) for update)"
            " select count(*) from locked",
        )
    return changed


def edits(server: Server, seed: float, share: float) -> int:
    """Edits a share of the messages, chosen at random; how many it was."""
    return _count(
        server,
        seed,
        "with top as (select max(id) as top from messages),"
        " chosen as materialized (select distinct 1 + floor(random() * top)::bigint as id"
        f" from top, generate_series(1, (top * {share})::bigint)),"
        " edited as (update messages m set body = m.body || ' (edited)', edited_at = timestamptz '2025-12-01'"
        " from chosen where chosen.id = m.id returning 1)"
        " select count(*) from edited",
    )


def appends(server: Server, seed: float, share: float) -> int:
    """Adds a share of new messages, as users do: more in some conversations, with what is read and counted there."""
    return _count(
        server,
        seed,
        "with top as (select m.top as message, m.sent, c.top as conversation from"
        " (select max(id) as top, max(sent_at) as sent from messages where id > (select max(id) - 1000 from messages)) m,"
        " (select max(id) as top from conversations) c),"
        " fresh as materialized (select n, 1 + floor(conversation * power(random(), 3))::bigint as conversation,"
        " 1 + floor(random() * message)::bigint as alike"
        f" from top, generate_series(1, (message * {share})::bigint) n),"
        " placed as materialized ("
        "select *, row_number() over (partition by conversation order by n) as place from fresh),"
        " added as (insert into messages(id, conversation_id, seq, sender_id, sent_at, kind, body)"
        " select top.message + p.n, p.conversation, c.last_seq + p.place, old.sender_id, top.sent + p.n * interval '1 ms',"
        " 0, old.body from top, placed p join conversations c on c.id = p.conversation join messages old on old.id = p.alike"
        " order by p.n returning 1),"
        " counted as (update conversations c set last_seq = c.last_seq + x.places"
        " from (select conversation, max(place) as places from placed group by 1) x where x.conversation = c.id),"
        " seen as (update read_markers r set last_read_seq = r.last_read_seq + 1, updated_at = timestamptz '2025-12-01'"
        " from (select distinct conversation, 1 + conversation * 7919 % (select max(id) from users) as reader from placed) x"
        " where r.conversation_id = x.conversation and r.user_id = x.reader)"
        " select count(*) from added",
    )


def _count(server: Server, seed: float, sql: str) -> int:
    return int(server.query(f"set max_parallel_workers_per_gather = 0; select setseed({seed}); {sql}", DATABASE).split()[-1])
