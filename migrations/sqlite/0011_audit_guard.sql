-- `replace` deletes the row in its way without asking the trigger before a delete: whoever inserts
-- a number that is there already is refused before that. What the database numbers itself has no
-- number here yet (-1), so nobody may give a row one below zero either; nor one far above, after
-- which the database would find no next one.
create trigger audit_is_new before insert on audit
when new.id >= 0 and (exists (select 1 from audit where id = new.id)
  or new.id > (select ifnull(max(id), 0) + 1 from audit))
begin
  select raise(abort, 'the audit table is only ever appended to');
end;
create trigger audit_is_numbered after insert on audit
when new.id < 1
begin
  select raise(abort, 'the audit table numbers its rows from 1');
end;
