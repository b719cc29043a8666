//! What the URL of a database says: what may be shown of it, and which file it means.

use std::path::Path;

/// The URL without its password and without its parameters, for messages.
pub fn shown_url(url: &str) -> String {
    // A parameter may be a password, and none is needed to know which database is meant.
    let url = url.split('?').next().unwrap_or_default();
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => {
            let user = url.get(scheme + 3..at).unwrap_or_default();
            let user = user.split(':').next().unwrap_or_default();
            format!(
                "{}://{user}{}",
                url.get(..scheme).unwrap_or_default(),
                url.get(at..).unwrap_or_default()
            )
        }
        _ => url.to_owned(),
    }
}

/// The file behind an SQLite URL; none for a server or a database in memory.
pub fn sqlite_file(url: &str) -> Option<&Path> {
    let rest = url.strip_prefix("sqlite:")?;
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let path = rest.split('?').next().unwrap_or_default();
    (!path.is_empty() && !path.contains(":memory:")).then(|| Path::new(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_url_has_no_password() {
        for (url, shown) in [
            ("postgres://u:se@cret@db:5432/n", "postgres://u@db:5432/n"),
            ("postgres://u@db/n?password=secret", "postgres://u@db/n"),
            ("postgres:///n?user=u&password=se@cret", "postgres:///n"),
            ("sqlite:///var/lib/x.db", "sqlite:///var/lib/x.db"),
        ] {
            assert_eq!(shown_url(url), shown);
        }
    }

    #[test]
    fn the_file_of_a_url() {
        assert_eq!(
            sqlite_file("sqlite:///a/b.db?mode=rw"),
            Some(Path::new("/a/b.db"))
        );
        assert_eq!(sqlite_file("sqlite:b.db"), Some(Path::new("b.db")));
        assert_eq!(sqlite_file("sqlite::memory:"), None);
        assert_eq!(sqlite_file("sqlite:"), None);
        assert_eq!(
            sqlite_file("sqlite://b.db?mode=ro"),
            Some(Path::new("b.db"))
        );
        assert_eq!(sqlite_file("postgres://u@h/d"), None);
    }
}
