//! Labels that people give to nodes.

/// Longest value of a label, and longest name in a key.
const LONGEST_VALUE: usize = 63;
/// Label prefixes that a kubelet refuses to give to its node, other than [`ALLOWED_PREFIXES`].
const RESERVED_DOMAINS: [&str; 2] = ["kubernetes.io", "k8s.io"];
/// Label prefixes below [`RESERVED_DOMAINS`] that a kubelet may set.
const ALLOWED_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// What keeps a label from being one that people may give to a node.
pub fn problem(key: &str, value: &str) -> Option<String> {
    if !is_key(key) {
        return Some(format!("{key:?}: expected a label's key, [prefix/]name"));
    }
    if !is_value(value) {
        return Some(format!("{value:?}: expected at most 63 letters, digits, dashes, underscores and dots"));
    }
    let prefix = key.split_once('/').map_or("", |(prefix, _)| prefix);
    let below = |domain: &str| prefix == domain || prefix.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    let reserved = RESERVED_DOMAINS.iter().any(|domain| below(domain));
    (reserved && !ALLOWED_PREFIXES.iter().any(|domain| below(domain)))
        .then(|| format!("{key:?}: expected a key that a node may give itself, which those below {prefix} are not"))
}

/// `[prefix/]name`.
pub fn is_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let domain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let prefix_is_good = prefix.is_none_or(|p| !p.is_empty() && p.len() <= 253 && p.bytes().all(domain));
    prefix_is_good && !name.is_empty() && is_value(name)
}

/// Also an empty one.
pub fn is_value(value: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    bytes.len() <= LONGEST_VALUE && bytes.iter().all(|b| inner(*b)) && edge(bytes.first()) && edge(bytes.last())
}
