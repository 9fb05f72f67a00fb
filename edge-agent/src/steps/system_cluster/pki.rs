//! Certificates of the control plane, below the agent's root: kubeadm issues what is not there with every node.

use std::path::Path;

use crate::ca;
use crate::clock::Clock;

/// Certificates of the control plane, which kubeadm issues for a year.
const LEAVES: [&str; 7] = [
    "apiserver",
    "apiserver-kubelet-client",
    "apiserver-etcd-client",
    "front-proxy-client",
    "etcd/server",
    "etcd/peer",
    "etcd/healthcheck-client",
];

/// Whether a certificate of the control plane must be renewed, which a new node does; kubelet renews its own. One that an
/// authority can no longer or not yet sign for long would be due again at once.
pub fn is_ending(pki: &Path, clock: &Clock) -> bool {
    let is_due = |name: &str, now| std::fs::read(pki.join(name)).is_ok_and(|pem| ca::is_due(&pem, now));
    clock.now().is_ok_and(|now| !is_due("ca.crt", now) && LEAVES.iter().any(|leaf| is_due(&format!("{leaf}.crt"), now)))
}

/// Leaves are issued anew with every node: kubeadm refuses old ones whose names differ, and so they never expire.
/// Authorities and the service-account key stay. Without etcd data, nothing was ever signed that matters: a torn
/// first attempt may have left half a pair, so all goes.
pub fn prepare(pki: &Path, has_data: bool) -> std::io::Result<()> {
    let remove = |path: &Path| match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    };
    if has_data {
        for leaf in LEAVES {
            remove(&pki.join(format!("{leaf}.crt")))?;
            remove(&pki.join(format!("{leaf}.key")))?;
        }
        return Ok(());
    }
    for entry in std::fs::read_dir(pki)? {
        let path = entry?.path();
        if path.is_dir() {
            std::fs::remove_dir_all(&path)?;
        } else {
            remove(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_that_end_are_renewed_where_their_authority_lasts() {
        let (folder, now) = (tempfile::tempdir().unwrap(), jiff::Timestamp::now());
        std::fs::create_dir(folder.path().join("etcd")).unwrap();
        let clock = Clock::open(&folder.path().join("clock.json"));
        let write = |name: &str, days: i64| {
            let mut params = rcgen::CertificateParams::default();
            params.not_before = time::OffsetDateTime::from_unix_timestamp(now.as_second()).unwrap();
            params.not_after = params.not_before + time::Duration::days(days);
            let key = rcgen::KeyPair::generate().unwrap();
            std::fs::write(folder.path().join(name), params.self_signed(&key).unwrap().pem()).unwrap();
        };
        assert!(!is_ending(folder.path(), &clock), "there are none yet");
        write("ca.crt", 3650);
        write("apiserver.crt", 365);
        write("etcd/peer.crt", 365);
        assert!(!is_ending(folder.path(), &clock));
        write("etcd/peer.crt", 100);
        assert!(is_ending(folder.path(), &clock));
        write("ca.crt", 100);
        assert!(!is_ending(folder.path(), &clock));
    }

    #[test]
    fn authorities_stay_and_leaves_go() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("etcd")).unwrap();
        for name in ["ca.crt", "ca.key", "sa.key", "apiserver.crt", "apiserver.key", "etcd/ca.crt", "etcd/peer.crt"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        prepare(folder.path(), true).unwrap();
        for (name, there) in [("ca.crt", true), ("sa.key", true), ("etcd/ca.crt", true), ("apiserver.crt", false)] {
            assert_eq!(folder.path().join(name).exists(), there, "{name}");
        }
        assert!(!folder.path().join("etcd/peer.crt").exists());
        prepare(folder.path(), false).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
