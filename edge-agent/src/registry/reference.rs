//! Names of artifacts, and where they are in the local registry: `<origin host>/<path>`.

/// A full reference with origin host and tag.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reference {
    /// `registry.k8s.io`.
    pub origin: String,
    /// `coredns/coredns`.
    pub path: String,
    /// `v1.14.2`.
    pub tag: String,
}

impl Reference {
    /// Parses `host/path:tag`; the host has a dot, a port, or is `localhost`.
    pub fn parse(name: &str) -> Option<Self> {
        let (origin, rest) = name.split_once('/')?;
        let (path, tag) = rest.rsplit_once(':')?;
        let host = origin.contains(['.', ':']) || origin == "localhost";
        let good =
            |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:".contains(&b));
        let safe = !path.split('/').any(|part| part.is_empty() || part == "." || part == "..");
        (host && good(origin) && good(path) && good(tag) && safe && !tag.contains('/')).then(|| Self {
            origin: origin.to_owned(),
            path: path.to_owned(),
            tag: tag.to_owned(),
        })
    }

    /// Repository in the local registry.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.origin, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let parsed = Reference::parse("registry.k8s.io/coredns/coredns:v1.14.2").unwrap();
        assert_eq!(parsed.repository(), "registry.k8s.io/coredns/coredns");
        assert_eq!((parsed.origin.as_str(), parsed.tag.as_str()), ("registry.k8s.io", "v1.14.2"));
        for bad in ["busybox:1", "a/b:1", "a.b/c", "a.b/../c:1", "a.b/c:1/2", "a.b//c:1", "a.b/c d:1"] {
            assert_eq!(Reference::parse(bad), None, "{bad}");
        }
    }
}
