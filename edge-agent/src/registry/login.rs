//! The pull login: made once, readable by root on the box.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use edge_api::names::REGISTRY_PULL_USER;
use uuid::Uuid;

use crate::durable;
use crate::engine::Failure;
use crate::paths::Paths;

/// The password has 240 random bits: a costly hash protects nothing, and every request pays for it.
const COST: u32 = 5;

/// The pull login.
#[derive(Clone, Eq, PartialEq)]
pub struct Login {
    /// Password.
    pub password: String,
    /// Line for the registry's password file.
    pub htpasswd: String,
}

impl Login {
    /// The login with the password in `state/registry-pull`, made where there is none.
    pub fn ensure(paths: &Paths) -> Result<Self, Failure> {
        let (path, hash_path) = (paths.join("state/registry-pull"), paths.join("state/registry-htpasswd"));
        let read = |path| {
            let text = durable::read(path, 4096).map_err(|e| Failure::of(&e))?;
            Ok::<_, Failure>(text.map(|t| String::from_utf8_lossy(&t).trim().to_owned()))
        };
        let prefix = format!("{REGISTRY_PULL_USER}:");
        let password = match read(&path)? {
            Some(password) if !password.is_empty() => password,
            _ => {
                let password = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
                durable::write(&path, format!("{password}\n").as_bytes(), 0o600).map_err(|e| Failure::of(&e))?;
                password
            }
        };
        let matches =
            |line: &str| line.strip_prefix(&prefix).is_some_and(|h| bcrypt::verify(&password, h).unwrap_or(false));
        let htpasswd = if let Some(line) = read(&hash_path)?.filter(|line| matches(line)) {
            line
        } else {
            let hash = bcrypt::hash(&password, COST).map_err(|e| Failure::of(&e))?;
            let line = format!("{prefix}{hash}");
            durable::write(&hash_path, format!("{line}\n").as_bytes(), 0o600).map_err(|e| Failure::of(&e))?;
            line
        };
        Ok(Self { password, htpasswd })
    }

    /// `user:password` in base64, for basic authorization.
    pub fn basic(&self) -> String {
        BASE64_STANDARD.encode(format!("{REGISTRY_PULL_USER}:{}", self.password))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_login_is_made_once_and_its_hash_fits() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::new(folder.path());
        paths.ensure().unwrap();
        let first = Login::ensure(&paths).unwrap();
        assert!(Login::ensure(&paths).unwrap() == first);
        durable::write(&paths.join("state/registry-pull"), b"other\n", 0o600).unwrap();
        let edited = Login::ensure(&paths).unwrap();
        assert_eq!(edited.password, "other");
        assert!(edited.htpasswd != first.htpasswd, "the hash follows");
    }
}
