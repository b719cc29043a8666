-- What an operator said instead of the billing's nas.mode (nas activate, nas observe).
alter table nas_state add column mode text;
