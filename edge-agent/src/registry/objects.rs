//! Objects of the registry: one pod with two containers on the same storage. `pull` serves everybody, read-only, with
//! TLS and a login; `push` listens on the pod's loopback only, and the agent reaches it through the API server.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use edge_api::names::{NAMESPACE, REGISTRY_PORT, REGISTRY_PULL_SECRET, REGISTRY_PULL_USER};
use serde_json::{Value, json};

use super::login::Login;
use crate::bundle;
use crate::ca::Leaf;
use crate::node::NODE_REGISTRY;

/// Name of the Deployment, the Service and the rest.
pub const NAME: &str = "registry";
/// Port of the container `push` on the pod's loopback.
pub const PUSH_PORT: u16 = 5001;

/// Configuration file of the container `push`, in its pod.
pub const PUSH_CONFIG: &str = "/etc/registry-config/push.yml";

/// The namespace of all of ours.
pub fn namespace() -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
}

/// All objects of the registry, in order.
pub fn objects(image: &str, leaf: &Leaf, login: &Login, authority: &str) -> Vec<Value> {
    let labels = json!({"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "pcg-edge"});
    let metadata = |name: &str| json!({"name": name, "namespace": NAMESPACE, "labels": labels});
    let base64 = |text: &str| BASE64_STANDARD.encode(text);
    let pull = config(
        &json!({
            "addr": format!(":{REGISTRY_PORT}"),
            "tls": {"certificate": "/etc/registry/tls.crt", "key": "/etc/registry/tls.key", "minimumtls": "tls1.2"},
        }),
        true,
    );
    let push = config(&json!({"addr": format!("127.0.0.1:{PUSH_PORT}")}), false);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": metadata("registry"), "type": "Opaque",
        "data": {
            "tls.crt": base64(&leaf.certificate),
            "tls.key": base64(&leaf.key),
            "htpasswd": base64(&format!("{}\n", login.htpasswd)),
        },
    });
    let pull_secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": metadata(REGISTRY_PULL_SECRET), "type": "Opaque",
        "data": {
            "username": base64(REGISTRY_PULL_USER),
            "password": base64(&login.password),
            "ca.crt": base64(authority),
        },
    });
    let config_map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("registry"),
        "data": {"pull.yml": pull, "push.yml": push},
    });
    // A registry reads its files once: their digest makes a change of theirs a change of the pod.
    let digest = bundle::sha256(format!("{secret}{config_map}").as_bytes());
    let container = |name: &str, rest: Value| {
        let mut container = json!({
            "name": name,
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "args": ["serve", format!("/etc/registry-config/{name}.yml")],
            "env": [{"name": "OTEL_TRACES_EXPORTER", "value": "none"}],
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [
                {"name": "storage", "mountPath": "/var/lib/registry"},
                {"name": "config", "mountPath": "/etc/registry-config", "readOnly": true},
                {"name": "secret", "mountPath": "/etc/registry", "readOnly": true},
            ],
        });
        if let (Some(container), Value::Object(rest)) = (container.as_object_mut(), rest) {
            container.extend(rest);
        }
        container
    };
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(NAME),
        "spec": {
            "replicas": 1,
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": {"app.kubernetes.io/name": NAME}},
            "template": {
                "metadata": {"labels": labels, "annotations": {"pcg-edge.io/config-digest": digest}},
                "spec": {
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "priorityClassName": "system-cluster-critical",
                    "terminationGracePeriodSeconds": 5,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [
                        container("pull", json!({
                            "ports": [{"name": "https", "containerPort": REGISTRY_PORT, "protocol": "TCP"}],
                            "readinessProbe": {
                                "tcpSocket": {"port": "https"}, "periodSeconds": 2, "failureThreshold": 3,
                            },
                        })),
                        container("push", json!({})),
                    ],
                    "volumes": [
                        {"name": "storage", "hostPath": {"path": NODE_REGISTRY, "type": "Directory"}},
                        {"name": "config", "configMap": {"name": "registry"}},
                        {"name": "secret", "secret": {"secretName": "registry", "defaultMode": 0o400}},
                    ],
                },
            },
        },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata(NAME),
        "spec": {
            "type": "NodePort",
            "selector": {"app.kubernetes.io/name": NAME},
            "ports": [{
                "name": "https", "port": REGISTRY_PORT, "targetPort": "https", "nodePort": REGISTRY_PORT,
                "protocol": "TCP",
            }],
        },
    });
    vec![secret, pull_secret, config_map, deployment, service]
}

/// Configuration of one of the two, in JSON, which is YAML.
fn config(http: &Value, read_only: bool) -> String {
    let mut http = http.clone();
    http["relativeurls"] = json!(true);
    let mut config = json!({
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": true}},
        "storage": {
            "filesystem": {"rootdirectory": "/var/lib/registry"},
            "delete": {"enabled": !read_only},
            "maintenance": {"readonly": {"enabled": read_only}, "uploadpurging": {"enabled": !read_only, "age": "24h", "interval": "24h", "dryrun": false}},
        },
        "http": http,
    });
    if read_only {
        config["auth"] = json!({"htpasswd": {"realm": "pcg-edge", "path": "/etc/registry/htpasswd"}});
    }
    config.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_restarts_for_another_certificate_only() {
        let leaf = |text: &str| Leaf { certificate: text.to_owned(), key: "k".to_owned() };
        let login = Login { password: "p".to_owned(), htpasswd: "pull:h".to_owned() };
        let deployment = |leaf: &Leaf| objects("i", leaf, &login, "ca")[3].clone();
        assert_eq!(deployment(&leaf("a"))["kind"], "Deployment");
        assert_eq!(deployment(&leaf("a")), deployment(&leaf("a")));
        assert_ne!(deployment(&leaf("a")), deployment(&leaf("b")));
    }

    #[test]
    fn only_push_may_write_and_only_on_loopback() {
        let pull: Value = serde_json::from_str(&config(&json!({"addr": ":10443"}), true)).unwrap();
        assert_eq!(pull["storage"]["maintenance"]["readonly"]["enabled"], true);
        assert!(pull["auth"]["htpasswd"].is_object());
        let push: Value = serde_json::from_str(&config(&json!({"addr": "127.0.0.1:5001"}), false)).unwrap();
        assert_eq!(push["storage"]["maintenance"]["readonly"]["enabled"], false);
    }
}
