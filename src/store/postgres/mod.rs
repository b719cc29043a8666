//! PostgreSQL: production. (to be written)
