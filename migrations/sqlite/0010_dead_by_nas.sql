-- Dead events that nobody has retried yet are counted of each NAS, every second. With
-- `retried_as`, for SQLite looks at it although the index says what it is.
create index events_dead_of_nas on events_dead (nas_id, retried_as) where retried_as is null;
