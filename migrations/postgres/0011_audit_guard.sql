-- `truncate` asks no trigger of rows.
create or replace function audit_is_appended_to() returns trigger language plpgsql as $$
begin
  if tg_op in ('UPDATE', 'TRUNCATE') then
    raise exception 'the audit table is only ever appended to';
  end if;
  if old.at > now() - interval '30 days' then
    raise exception 'the audit table keeps at least 30 days';
  end if;
  return old;
end $$;
create trigger audit_is_not_emptied before truncate on audit
  for each statement execute function audit_is_appended_to();
-- Also where a session says that it replicates (session_replication_role).
alter table audit enable always trigger audit_is_kept;
alter table audit enable always trigger audit_is_not_emptied;
