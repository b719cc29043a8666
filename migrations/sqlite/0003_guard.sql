-- What operators tell the intent guard: announced batches (`allow`) stay until they are taken
-- back; releases of held events (`approve`) until the daemon has carried them out. Times are
-- wall ms, as the guard reckons.
create table guard_order (
  id integer primary key autoincrement,
  kind text not null,
  source text,
  cmd text,
  event_id integer,
  from_ms integer not null default 0,
  for_ms integer not null default 0,
  most integer not null default 0,
  monthly integer not null default 0,
  who text not null default '',
  created_at text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now'))
);
