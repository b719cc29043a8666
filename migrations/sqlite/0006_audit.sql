-- Who changed what is not changed afterwards, and the last 30 days of it are not deleted, whoever
-- asks (audit.keep is at least as long).
create trigger audit_is_not_changed before update on audit
begin
  select raise(abort, 'the audit table is only ever appended to');
end;
create trigger audit_is_kept before delete on audit
when old.at > strftime('%Y-%m-%d %H:%M:%f', 'now', '-30 days')
begin
  select raise(abort, 'the audit table keeps at least 30 days');
end;
