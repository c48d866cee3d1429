//! Everything that makes PostgreSQL write to files in a way of its own.

use holdfast_testkit::Postgres;

const TABLES: &str = "
create table rows (id serial primary key, word text, list int[], place point, document jsonb, long text);
alter table rows alter column long set storage external;
insert into rows (word, list, place, document, long)
    select md5(i::text), array[i, i % 7], point(i % 100, i / 100), jsonb_build_object('i', i), repeat('x', i % 9000)
    from generate_series(1, 4000) i;
create index on rows using btree (word);
create index on rows using hash (word);
create index on rows using gin (list);
create index on rows using gin (document) with (fastupdate = on);
create index on rows using gist (place);
create index on rows using spgist (place);
create index on rows using brin (id) with (pages_per_range = 4, autosummarize = on);
create index concurrently on rows (id, word);
insert into rows (word, list, place, document, long)
    select md5(i::text), array[i, i % 5], point(i % 90, i / 90), jsonb_build_object('j', i), null
    from generate_series(1, 3000) i;
update rows set word = 'changed ' || id where id % 3 = 0;
delete from rows where id % 5 = 0;
vacuum (freeze, analyze) rows;
select brin_summarize_new_values('rows_id_idx'), gin_clean_pending_list('rows_document_idx');
delete from rows where id > 3000;
vacuum rows;
begin; select id from rows where id < 50 for update; select id from rows where id < 90 for share; commit;
reindex table rows;
reindex table concurrently rows;
cluster rows using rows_word_idx;
vacuum full rows;
alter table rows alter column id type bigint;
create materialized view summary as select id % 10 as part, count(*) from rows group by 1;
create unique index on summary (part);
refresh materialized view summary;
refresh materialized view concurrently summary;
create table parts (id int, word text) partition by range (id);
create table part1 partition of parts for values from (0) to (500);
create table part2 partition of parts for values from (500) to (1000);
insert into parts select i % 1000, md5(i::text) from generate_series(1, 2000) i;
truncate part1;
alter table parts detach partition part2;
drop table part2;
begin; truncate rows restart identity; rollback;
begin; create table passing as select * from rows; create index on passing (id); rollback;
begin; savepoint one; create table inner_one (a int); insert into inner_one values (1); rollback to one;
    create table inner_two (a int); insert into inner_two values (2); commit;
begin; create table short (a int primary key); insert into short values (1); truncate short;
    insert into short values (2); drop table short; commit;
vacuum full pg_class;
reindex system postgres;
cluster pg_attribute using pg_attribute_relid_attnum_index;
";

const PERSISTENCE: &str = "
create unlogged table light (id serial primary key, word text);
create index on light using gin (to_tsvector('simple', word));
create index on light using gist (point(id, id));
create index on light using brin (id);
create index on light using spgist (word);
create index on light using hash (word);
insert into light (word) select md5(i::text) from generate_series(1, 2000) i;
alter table light set logged;
insert into light (word) select md5(i::text) from generate_series(1, 500) i;
alter table light set unlogged;
insert into light (word) select md5(i::text) from generate_series(1, 500) i;
create unlogged sequence light_numbers;
select nextval('light_numbers') from generate_series(1, 40);
alter sequence light_numbers set logged;
select nextval('light_numbers') from generate_series(1, 40);
create sequence numbers;
select nextval('numbers') from generate_series(1, 100);
alter sequence numbers restart 7 increment 3;
select setval('numbers', 1000), nextval('numbers');
create temporary table passing_by as select i from generate_series(1, 1000) i;
drop table passing_by;
select lo_from_bytea(0, repeat('large', 5000)::bytea) from generate_series(1, 5);
select lo_put(oid, 3000, 'changed') from pg_largeobject_metadata limit 2;
select lo_unlink(max(oid)) from pg_largeobject_metadata;
";

const PREPARED: &str = "
create table kept (a int); create table doomed (a int); insert into doomed values (1);
begin; create table promised (a int primary key); insert into promised select generate_series(1, 500);
    drop table doomed; savepoint s; insert into kept values (5); prepare transaction 'one';
begin; create table unwanted (a int primary key); insert into unwanted select generate_series(1, 500);
    prepare transaction 'two';
checkpoint;
commit prepared 'one';
rollback prepared 'two';
";

const PLACES: &str = "
set allow_in_place_tablespaces = true;
create tablespace elsewhere location '';
create tablespace unused location '';
alter table rows set tablespace elsewhere;
alter index rows_word_idx set tablespace elsewhere;
insert into rows (word) select md5(i::text) from generate_series(1, 500) i;
create table away (id int primary key, word text) tablespace elsewhere;
insert into away select i, md5(i::text) from generate_series(1, 2000) i;
create unlogged table light_away (id int) tablespace elsewhere;
alter table light_away set tablespace pg_default;
drop tablespace unused;
create database by_log template template0 strategy wal_log;
create database by_file template template0 strategy file_copy;
create database away_by_file template template0 strategy file_copy tablespace elsewhere;
create database brief strategy wal_log;
drop database brief;
";

const DATABASES: &str = "
create table t as select i, md5(i::text) from generate_series(1, 1000) i;
create index on t (i);
";

/// Ends in something that is not committed, not flushed, or both.
pub fn run(server: &mut Postgres) {
    server.sql(TABLES);
    server.sql(PERSISTENCE);
    server.sql(PREPARED);
    server.sql(PLACES);
    for database in ["by_log", "by_file", "away_by_file"] {
        server.sql_in(database, DATABASES);
    }
    server.sql(
        "create database copied template by_log strategy wal_log;
         create database copied_by_file template by_file strategy file_copy;
         alter database by_file set tablespace elsewhere;
         drop database copied; drop database away_by_file;",
    );
    server.kill_9();
    server.start();
    server.sql(
        "update rows set word = 'again'; vacuum rows; alter table rows set tablespace pg_default;
         insert into light (word) values ('after the crash'); drop table away;",
    );
}
