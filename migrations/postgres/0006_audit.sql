-- Who changed what is not changed afterwards, and the last 30 days of it are not deleted, whoever
-- asks (audit.keep is at least as long).
create function audit_is_appended_to() returns trigger language plpgsql as $$
begin
  if tg_op = 'UPDATE' then
    raise exception 'the audit table is only ever appended to';
  end if;
  if old.at > now() - interval '30 days' then
    raise exception 'the audit table keeps at least 30 days';
  end if;
  return old;
end $$;
create trigger audit_is_kept before update or delete on audit
  for each row execute function audit_is_appended_to();
