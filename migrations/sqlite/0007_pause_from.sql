-- A pause may be announced: nothing is started between paused_from and paused_until. Null: at once.
alter table nas_state add column paused_from text;
