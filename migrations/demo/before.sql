-- The demo's billing before the events: {accounts} accounts on three NASes. Of the first
-- {events}, one third is not redirected yet, one third is, one third has an old speed.
insert into nas (id, name, ip, forks, oss_path, api_port, max_sessions) values
  (1, 'BRAS-healthy', '127.0.0.1', 10, 'Mikrotik-Simple', {port1}, 3),
  (2, 'BRAS-slow', '127.0.0.1', 20, 'Mikrotik-Simple', {port2}, 3),
  (3, 'BRAS-moody', '127.0.0.1', 10, 'Mikrotik-Simple', {port3}, 3);
insert into nas_secret (nas_id, login, password) values
  (1, 'billing', '{password}'), (2, 'billing', '{password}'), (3, 'billing', '{password}');
insert into abonents (id, name)
with recursive n(i) as (select 1 union all select i + 1 from n where i < {accounts})
select 500 + i, 'Subscriber ' || i from n;
insert into users (id, abonent_id, nas_id, login, ip, redirect, ceil_in, ceil_out, rate_in, rate_out)
with recursive n(i) as (select 1 union all select i + 1 from n where i < {accounts})
select 1000 + i, 500 + i, 1 + (i / 3) % 3, 'user' || i, '10.88.' || (i / 250) || '.' || (1 + i % 250),
  case when i <= {events} then i % 3 = 1 else i % 10 = 0 end, 2048, 4096, 512, 512
from n;
