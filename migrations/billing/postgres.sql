-- A sample billing, created only where none of its names exists. A real billing brings tables
-- or views of these names; the daemon only reads them.

create table nas (
  id bigint primary key,
  name text not null default '',
  ip text not null default '',
  mode text not null default 'active',
  forks integer not null default 5,
  oss_path text,
  script_name text,
  api_port integer,
  api_tls smallint not null default 0,
  ssh_port integer,
  ssh_host_key text,
  telnet_port integer,
  coa_port integer,
  http_url text,
  max_sessions integer,
  max_rate double precision,
  timeout_ms integer,
  on_error text,
  vars jsonb
);

create table nas_secret (
  nas_id bigint primary key,
  login text,
  password text,
  enable_password text,
  coa_secret text,
  ssh_key text
);

create table abonents (
  id bigint primary key,
  name text not null default ''
);

create table users (
  id bigint primary key,
  abonent_id bigint,
  nas_id bigint,
  login text,
  ip text,
  mac text,
  snatip text,
  auth_type smallint not null default 1,
  accept smallint not null default 1,
  redirect smallint not null default 0,
  logged smallint not null default 0,
  deleted smallint not null default 0,
  rate_in bigint,
  rate_out bigint,
  ceil_in bigint,
  ceil_out bigint,
  burst_in bigint,
  burst_out bigint,
  cburst_in bigint,
  cburst_out bigint,
  acct_session_id text,
  addresses jsonb,
  vlan text,
  switch_ip text,
  switch_port text,
  circuit_id text
);

create table usluga (
  id bigint primary key,
  name text not null default '',
  policy text,
  lists jsonb
);

create view event_params as
select u.id as user_id, u.abonent_id, u.nas_id, a.name as abonent_name,
  u.login, u.ip, u.mac, u.snatip, u.auth_type,
  u.accept, u.redirect, u.logged, u.deleted,
  u.rate_in, u.rate_out, u.ceil_in, u.ceil_out,
  u.burst_in, u.burst_out, u.cburst_in, u.cburst_out,
  u.acct_session_id, u.addresses, u.vlan, u.switch_ip, u.switch_port, u.circuit_id
from users u left join abonents a on a.id = u.abonent_id;

create view event_usluga as
select u.id as user_id, g.id as usluga_id, g.name as usluga_name, g.policy as usluga_policy,
  json_build_object('id', g.id, 'name', g.name, 'policy', coalesce(g.policy, ''),
    'lists', coalesce(g.lists, '[]')) as service
from users u cross join usluga g;
