//! The refusal of a database that the store in memory plays.

/// What SQLite says of a row that breaks a constraint.
#[derive(Debug)]
pub(crate) struct Constraint;

impl std::fmt::Display for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("constraint failed")
    }
}

impl std::error::Error for Constraint {}

impl sqlx::error::DatabaseError for Constraint {
    fn message(&self) -> &str {
        "constraint failed"
    }
    fn code(&self) -> Option<std::borrow::Cow<'_, str>> {
        Some("275".into())
    }
    fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        self
    }
    fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
        self
    }
    fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
        self
    }
    fn kind(&self) -> sqlx::error::ErrorKind {
        sqlx::error::ErrorKind::CheckViolation
    }
}
