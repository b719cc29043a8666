-- How far a bulk call has come is asked while it runs, of tables with a million rows. Most rows
-- belong to no batch and cost nothing here.
create index events_stack_compact_batch on events_stack_compact (batch_id) where batch_id is not null;
create index events_stack_batch on events_stack (batch_id) where batch_id is not null;
create index events_dead_batch on events_dead (batch_id, id) where batch_id is not null;
create index events_done_batch on events_done (batch_id, id) where batch_id is not null;
-- Dead events that nobody has retried yet are counted every second.
create index events_dead_fresh on events_dead (id) where retried_as is null;
