//! What the daemon reads of the billing's tables, for both stores alike.

use crate::event::refused_name;

/// (table or view, columns that must be there, columns that may be there).
pub(super) const NEEDED: &[(&str, &[&str], &[&str])] = &[
    (
        "nas",
        &["id", "name", "ip", "forks", "oss_path", "script_name"],
        NAS_OPTIONAL,
    ),
    (
        "nas_secret",
        &["nas_id", "login", "password"],
        &["enable_password", "coa_secret", "ssh_key"],
    ),
    (
        "users",
        &["id"],
        &[
            "nas_id", "deleted", "accept", "redirect", "rate_in", "rate_out", "ceil_in", "ceil_out",
        ],
    ),
    ("abonents", &["id"], &[]),
    ("usluga", &["id"], &[]),
    ("event_params", &["user_id", "abonent_id", "nas_id"], &[]),
    ("event_usluga", &["user_id", "usluga_id"], &[]),
];

/// Columns of `nas` whose absence means NULL.
pub(super) const NAS_OPTIONAL: &[&str] = &[
    "mode",
    "api_port",
    "api_tls",
    "ssh_port",
    "ssh_host_key",
    "telnet_port",
    "coa_port",
    "http_url",
    "max_sessions",
    "max_rate",
    "timeout_ms",
    "on_error",
    "vars",
];

/// One text per missing table or column, and per view column that cannot be a variable.
pub(super) fn missing(columns_of: impl Fn(&str) -> Option<Vec<String>>) -> Vec<String> {
    let mut found = Vec::new();
    for (table, needed, _) in NEEDED {
        match columns_of(table) {
            None => found.push(format!(
                "table or view {table} is missing; it must have the columns {}",
                needed.join(", ")
            )),
            Some(columns) => {
                for column in *needed {
                    if !columns.iter().any(|c| c == column) {
                        found.push(format!(
                            "{table}.{column} is missing: add the column (it may be NULL)"
                        ));
                    }
                }
                if table.starts_with("event_") {
                    for column in &columns {
                        if refused_name(column) {
                            found.push(format!(
                                "{table}.{column} must not be a variable (secrets belong to nas_secret): \
                                 take the column out of the view"
                            ));
                        } else if !crate::event::is_name(column) {
                            found.push(format!(
                                "{table}.{column:?} is no variable name (^[a-z][a-z0-9_]{{0,63}}$): rename the column"
                            ));
                        }
                    }
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_column_is_named() {
        let all = |table: &str| {
            NEEDED
                .iter()
                .find(|n| n.0 == table)
                .map(|n| n.1.iter().map(|c| (*c).to_owned()).collect())
        };
        assert_eq!(missing(all), Vec::<String>::new());
        let texts = missing(|t| match t {
            "event_params" => Some(vec![
                "user_id".into(),
                "nas_id".into(),
                "web_password".into(),
                "http_proxy".into(),
            ]),
            "nas" => None,
            other => all(other),
        });
        assert_eq!(texts.len(), 4, "{texts:?}");
        assert!(texts.iter().any(|t| t.contains("event_params.abonent_id")));
        assert!(texts.iter().any(|t| t.contains("web_password")));
        assert!(texts.iter().any(|t| t.contains("http_proxy")));
        assert!(texts.iter().any(|t| t.contains("nas is missing")));
    }
}
