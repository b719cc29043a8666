-- What the billing decides then; each line is told to the daemon as an event.
update users set redirect = 1 where id <= 1000 + {events} and (id - 1000) % 3 = 0;
update users set redirect = 0 where id <= 1000 + {events} and (id - 1000) % 3 = 1;
update users set ceil_in = 10240, ceil_out = 20480 where id <= 1000 + {events} and (id - 1000) % 3 = 2;
