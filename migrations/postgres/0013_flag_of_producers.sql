-- Producers write 0 or 1 here, as on SQLite: PostgreSQL takes no number for a boolean.
alter table events_stack_compact alter column params_complete drop default;
alter table events_stack_compact
  alter column params_complete type smallint using params_complete::int::smallint;
alter table events_stack_compact alter column params_complete set default 0;
