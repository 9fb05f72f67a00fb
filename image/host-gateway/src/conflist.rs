//! The file by which the container runtime connects pods: a network configuration list of the Container Network
//! Interface. As long as it is missing kubelet reports the node as not ready.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use ipnet::Ipv4Net;
use serde_json::{Value, json};

/// Name of the file.
pub const FILE: &str = "10-host-gateway.conflist";

/// The list for a node with these addresses of pods.
///
/// The bridge does not masquerade: between nodes a pod keeps its address, and only [`crate::rules`] knows what
/// leaves the pod network. A pod may reach itself through its service (`hairpinMode`).
pub fn render(pod_cidr: Ipv4Net) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "host-gateway",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": pod_cidr}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

/// Has the list in this folder, as a whole or not at all. Tells whether it wrote.
pub fn ensure(dir: &Path, pod_cidr: Ipv4Net) -> io::Result<bool> {
    let path = dir.join(FILE);
    let text = format!("{:#}\n", render(pod_cidr));
    match fs::read(&path) {
        Ok(found) if found == text.as_bytes() => return Ok(false),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // A name that the runtime does not take for a list.
    let mut file = tempfile::Builder::new().prefix(".host-gateway-").suffix(".new").tempfile_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn pods_get_addresses_of_the_node() {
        let list = render("10.240.3.0/24".parse().unwrap());
        let bridge = &list["plugins"][0];
        assert_eq!(bridge["ipam"]["ranges"], json!([[{"subnet": "10.240.3.0/24"}]]));
        assert_eq!(bridge["isGateway"], true);
        assert_eq!(bridge.get("ipMasq"), None);
        assert_eq!(list["plugins"][1]["type"], "portmap");
    }

    #[test]
    fn it_is_written_once_and_again_when_it_differs() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = ("10.240.3.0/24".parse().unwrap(), "10.240.4.0/24".parse().unwrap());
        assert!(ensure(dir.path(), one).unwrap());
        assert!(!ensure(dir.path(), one).unwrap());
        assert!(ensure(dir.path(), other).unwrap());
        let path = dir.path().join(FILE);
        assert_eq!(serde_json::from_slice::<Value>(&fs::read(&path).unwrap()).unwrap(), render(other));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        fs::write(&path, "{").unwrap();
        assert!(ensure(dir.path(), other).unwrap());
        assert_eq!(names(dir.path()), [FILE]);
        assert!(ensure(&dir.path().join("absent"), one).is_err());
    }
}
