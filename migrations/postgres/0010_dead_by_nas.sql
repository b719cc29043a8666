-- Dead events that nobody has retried yet are counted of each NAS, every second.
create index events_dead_of_nas on events_dead (nas_id) where retried_as is null;
