-- When a dead event is retried by itself, wall ms: a retry that is spread over time outlives the
-- daemon that was told of it.
alter table events_dead add column retry_ms integer;
create index events_dead_due on events_dead (retry_ms, id desc) where retry_ms is not null and retried_as is null;
