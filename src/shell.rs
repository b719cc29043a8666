//! Quoting for POSIX shells (bash): a logged command can be pasted and gives the same argv.

/// One word of a command line, quoted only where needed; control characters as `$'\n'`
/// (bash manual, section 3.1.2.4 "ANSI-C Quoting").
pub fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:/@+,-=%^".contains(c);
    if !text.is_empty() && text.chars().all(plain) && !text.starts_with('=') {
        return text.to_owned();
    }
    if !text.chars().any(must_escape) {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    let mut out = String::from("$'");
    for c in text.chars() {
        match c {
            '\'' => out.push_str(r"\'"),
            '\\' => out.push_str(r"\\"),
            '\n' => out.push_str(r"\n"),
            '\t' => out.push_str(r"\t"),
            '\r' => out.push_str(r"\r"),
            c if must_escape(c) => {
                let mut utf8 = [0; 4];
                for byte in c.encode_utf8(&mut utf8).bytes() {
                    out.push_str(&format!(r"\x{byte:02x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

/// Control characters, and those that forge lines or directions in a terminal: C0, C1, DEL,
/// U+2028, U+2029, bidirectional controls.
pub fn must_escape(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}'
                | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting() {
        assert_eq!(quote("crb_10.88.0.15"), "crb_10.88.0.15");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote("$(reboot)"), "'$(reboot)'");
        assert_eq!(quote("*1"), "'*1'");
        assert_eq!(quote("a\n'b\\"), r"$'a\n\'b\\'");
        assert_eq!(quote("\u{1b}[2J"), r"$'\x1b[2J'");
        assert_eq!(quote("\u{202e}x"), r"$'\xe2\x80\xaex'");
    }
}
