-- A bridge that died between its post and what it does at the source may come back much later.
alter table idempotency add column lasting boolean not null default false;
