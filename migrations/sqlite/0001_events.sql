-- Our tables. Times are UTC text `YYYY-MM-DD HH:MM:SS.mmm`.

-- AUTOINCREMENT: without it SQLite gives id 1 again once the table is empty, and ids would
-- collide with the main stack, dead and done. Order depends on ids that never repeat.
create table events_stack_compact (
  id integer primary key autoincrement,
  cmd text not null,
  user_id integer,
  abonent_id integer,
  nas_id integer,
  nas_ip text,
  usluga_id integer,
  acct_session_id text,
  params text,
  params_complete integer not null default 0,
  owner_script text,
  owner_function text,
  source text,
  batch_id text,
  expires_at text,
  idempotency_key text,
  created_at text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now')),
  error text,
  expand_tries integer not null default 0,
  next_expand_at text,
  retried_from integer
);
-- The poll looks only at rows that were never tried; failed rows have their own queue.
create index events_stack_compact_fresh on events_stack_compact (id) where error is null;
create index events_stack_compact_again on events_stack_compact (next_expand_at) where error is not null;

create table events_stack (
  id integer primary key,
  event_type text not null,
  user_id integer,
  abonent_id integer,
  nas_id integer not null,
  usluga_id integer,
  acct_session_id text,
  params text not null,
  class integer not null,
  event_date text not null,
  owner_script text,
  owner_function text,
  source text,
  batch_id text,
  expires_at text,
  try_count integer not null default 0,
  deaths integer not null default 0,
  state text not null default 'ready',
  next_try_at text,
  epoch integer not null default 0,
  started_at text,
  possible_duplicate integer not null default 0,
  last_code integer,
  last_error text,
  own_params text,
  params_complete integer not null default 0
);
create index events_stack_nas on events_stack (nas_id, id);
create index events_stack_lane on events_stack (nas_id, user_id, id);

create table events_dead (
  id integer primary key,
  event_type text not null,
  user_id integer,
  abonent_id integer,
  nas_id integer,
  usluga_id integer,
  acct_session_id text,
  params text,
  class integer not null default 4,
  event_date text not null,
  owner_script text,
  owner_function text,
  source text,
  batch_id text,
  expires_at text,
  try_count integer not null default 0,
  deaths integer not null default 0,
  state text not null default 'dead',
  next_try_at text,
  epoch integer not null default 0,
  started_at text,
  possible_duplicate integer not null default 0,
  last_code integer,
  last_error text,
  own_params text,
  params_complete integer not null default 0,
  died_at text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now')),
  reason text not null,
  retried_as integer
);
create index events_dead_account on events_dead (user_id, id);

create table events_done (
  id integer primary key,
  event_type text not null,
  user_id integer,
  abonent_id integer,
  nas_id integer,
  usluga_id integer,
  acct_session_id text,
  event_date text not null,
  owner_script text,
  owner_function text,
  source text,
  batch_id text,
  result text not null,
  code integer not null default 0,
  ms integer not null default 0,
  answer text,
  attempts integer not null default 0,
  scheme_hash text,
  error text,
  possible_duplicate integer not null default 0,
  started_at text,
  finished_at text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now'))
);
create index events_done_account on events_done (user_id, id);

create table nas_state (
  nas_id integer primary key,
  paused_until text,
  pause_reason text not null default '',
  forks integer,
  ssh_host_key text
);

create table owner (
  scope text primary key,
  epoch integer not null,
  holder text not null,
  seen_at text not null
);

create table idempotency (
  key text primary key,
  body_hash text not null,
  ids text not null,
  created_at text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now'))
);

create table token (
  hash text primary key,
  name text not null unique,
  scope text not null,
  created_at text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now'))
);

create table audit (
  id integer primary key autoincrement,
  at text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now')),
  who text not null,
  what text not null,
  detail text not null default ''
);
