-- Each post with a key forgets the old keys; of a bridge there are as many as rows.
create index idempotency_age on idempotency (created_at);
