//! Keeps credentials out of what people read: whatever stands between `://` and `@` of a URL, and basic
//! authorization values.

/// The text with the credentials of every URL replaced by `***`.
pub fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "/?#\"'<>".contains(c)).unwrap_or(after.len());
        // A password may hold a slash that somebody forgot to encode: look on to the next space for an `@`.
        let word = after.find(|c: char| c.is_whitespace() || "\"'<>".contains(c)).unwrap_or(after.len());
        let authority = &after[..end];
        if let Some(sign) = authority.rfind('@').or_else(|| after[..word].find('@').filter(|_| authority.contains(':')))
        {
            out.push_str("***");
            rest = &after[sign..];
        } else {
            rest = after;
        }
    }
    out.push_str(rest);
    hide_word_after(&out, "Basic ")
}

fn hide_word_after(text: &str, marker: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(marker) {
        let (before, after) = rest.split_at(at + marker.len());
        out.push_str(before);
        let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || "+/=".contains(c))).unwrap_or(after.len());
        // Words of prose ("Basic login") stay; a credential is long.
        if end >= 12 {
            out.push_str("***");
        } else {
            out.push_str(&after[..end]);
        }
        rest = &after[end..];
    }
    out.push_str(rest);
    out
}

/// One line without control characters, redacted and at most `limit` characters.
pub fn line(text: &str, limit: usize) -> String {
    let flat: String = text
        .chars()
        .map(|c| if c == '\n' || c == '\r' || c == '\t' { ' ' } else { c })
        .filter(|c| !c.is_control())
        .collect();
    let mut flat = redact(flat.trim());
    if flat.chars().count() > limit {
        flat = flat.chars().take(limit.saturating_sub(1)).collect();
        flat.push('…');
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_urls_are_hidden() {
        assert_eq!(redact("via http://bob:s3cret@proxy:3128/x ok"), "via http://***@proxy:3128/x ok");
        assert_eq!(redact("http://bob:p@ss@proxy:3128"), "http://***@proxy:3128");
        assert_eq!(redact("http://bob:p/ss@proxy:3128"), "http://***@proxy:3128");
        assert_eq!(redact("https://127.0.0.1:6443/readyz"), "https://127.0.0.1:6443/readyz");
        assert_eq!(redact("two http://a:b@c https://d:e@f"), "two http://***@c https://***@f");
        assert_eq!(redact("Authorization: Basic cHVsbDpzZWNyZXQ= end"), "Authorization: Basic *** end");
        assert_eq!(redact("Basic login"), "Basic login");
    }

    #[test]
    fn lines_have_no_control_characters() {
        assert_eq!(line("a\nb\u{1b}[31mc\t", 20), "a b[31mc");
        assert_eq!(line("abcdef", 4), "abc…");
    }
}
