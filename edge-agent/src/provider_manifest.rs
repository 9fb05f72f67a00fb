//! Cluster API's install manifests, made fit for a box: upstream's files are unmodified in the bundle, and ask
//! cert-manager for certificates, leave `${NAME:=default}` to `clusterctl`, and name images of a staging registry.
//!
//! Here the appliance's own authority issues the certificates (D7), placeholders get their defaults or our values,
//! images are those of the bundle by digest, and `clusterctl` finds what it would have left had it installed them: its
//! labels, and an inventory of providers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use edge_api::bundle::Index;
use serde_json::{Value, json};

use crate::ca::Leaf;

/// Placeholders that do not get upstream's default: classes are what `EdgeCluster` is made of.
const SETTINGS: [(&str, &str); 1] = [("CLUSTER_TOPOLOGY", "true")];

/// Arguments beside upstream's, by the last part of an image's name. An emulated etcd takes longer than the 10 s and 15 s
/// that the manager of control planes gives it.
const ARGUMENTS: [(&str, &[&str]); 1] =
    [("kubeadm-control-plane-controller", &["--etcd-dial-timeout-duration=30s", "--etcd-call-timeout-duration=60s"])];

/// Label by which `clusterctl` finds everything that belongs to a provider; its value is empty.
const LABEL_CLUSTERCTL: &str = edge_api::cluster_api::LABEL_CLUSTERCTL;
/// Label with a provider's name in `clusterctl`'s form.
const LABEL_PROVIDER: &str = "cluster.x-k8s.io/provider";
/// Label of the entries of the inventory.
const LABEL_CORE: (&str, &str) = ("clusterctl.cluster.x-k8s.io/core", "inventory");

/// A provider as `clusterctl` knows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Provider {
    /// What it provides, for instance `BootstrapProvider`.
    pub type_: &'static str,
    /// Its name among those of its type.
    pub name: &'static str,
    /// Its name among all, which is that of its entry.
    pub label: &'static str,
    /// Where it runs.
    pub namespace: &'static str,
}

impl Provider {
    /// Its entry in the inventory; `version` begins with `v`.
    pub fn entry(&self, version: &str) -> Value {
        let Self { type_, name, label, namespace } = self;
        let (core, inventory) = LABEL_CORE;
        json!({
            "apiVersion": "clusterctl.cluster.x-k8s.io/v1alpha3",
            "kind": "Provider",
            "metadata": {
                "name": label, "namespace": namespace,
                "labels": {LABEL_CLUSTERCTL: "", LABEL_PROVIDER: label, core: inventory},
            },
            "providerName": name, "type": type_, "version": version,
        })
    }
}

/// A manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No YAML.
    #[error("document {document} of {file}")]
    Yaml {
        /// Which manifest.
        file: String,
        /// Which document, from 1.
        document: usize,
        /// Why.
        source: Box<serde_saphyr::Error>,
    },
    /// A placeholder has no default and no value here.
    #[error("${{{name}}} has no value")]
    Placeholder {
        /// Its name.
        name: String,
    },
    /// An image is not in the bundle.
    #[error("the bundle has no image {name:?}")]
    Image {
        /// Last part of its name, without tag.
        name: String,
    },
    /// A certificate's names or secret are missing.
    #[error("Certificate {name} has no dnsNames or no secretName")]
    Certificate {
        /// Its name.
        name: String,
    },
}

/// A certificate that a manifest asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateRequest {
    /// Namespace of the Secret.
    pub namespace: String,
    /// Name of the Secret.
    pub secret: String,
    /// DNS names.
    pub names: Vec<String>,
}

/// What a document comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// An object to apply.
    Object(Value),
    /// A certificate to issue.
    Certificate(CertificateRequest),
    /// Nothing: cert-manager's own business.
    Nothing,
}

/// The documents of a manifest, as text: they are large, and one at a time is enough.
pub fn documents(manifest: &str) -> impl Iterator<Item = &str> {
    manifest.split("\n---\n").map(|d| d.strip_prefix("---\n").unwrap_or(d)).filter(|d| !d.trim().is_empty())
}

/// Makes one document fit; `number` counts from 1. What belongs to no provider is not labelled as if it did.
pub fn prepare(
    file: &str,
    provider: Option<&Provider>,
    number: usize,
    document: &str,
    authority: &str,
    index: &Index,
) -> Result<Document, Error> {
    let text = resolve(document)?;
    let mut object: Value = serde_saphyr::from_str(&text).map_err(|source| Error::Yaml {
        file: file.to_owned(),
        document: number,
        source: Box::new(source),
    })?;
    let group = object["apiVersion"].as_str().unwrap_or_default().split('/').next().unwrap_or_default().to_owned();
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    match (group.as_str(), kind.as_str()) {
        ("cert-manager.io", "Certificate") => return certificate(&object).map(Document::Certificate),
        ("cert-manager.io", _) => return Ok(Document::Nothing),
        (_, "CustomResourceDefinition") => {
            // Not every one has versions to convert between; indexing would make what is not there.
            if let Some(config) = object.pointer_mut("/spec/conversion/webhook/clientConfig") {
                trust(config, authority);
            }
        }
        (_, "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => {
            for webhook in object["webhooks"].as_array_mut().into_iter().flatten() {
                trust(&mut webhook["clientConfig"], authority);
            }
        }
        (_, "Deployment") => {
            for container in object["spec"]["template"]["spec"]["containers"].as_array_mut().into_iter().flatten() {
                let upstream = container["image"].as_str().unwrap_or_default().to_owned();
                let name = last(&upstream);
                let more = ARGUMENTS.iter().filter(|(of, _)| *of == name).flat_map(|(_, arguments)| *arguments);
                if let Some(arguments) = container["args"].as_array_mut() {
                    arguments.extend(more.map(|argument| json!(argument)));
                }
                container["image"] = json!(image(&upstream, index)?);
                container["imagePullPolicy"] = json!("IfNotPresent");
            }
        }
        _ => {}
    }
    if let Some(Provider { label, .. }) = provider {
        object["metadata"]["labels"][LABEL_CLUSTERCTL] = json!("");
        object["metadata"]["labels"][LABEL_PROVIDER] = json!(label);
    }
    Ok(Document::Object(object))
}

/// The Secret that an issued certificate becomes.
pub fn secret(request: &CertificateRequest, leaf: &Leaf, authority: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": request.secret, "namespace": request.namespace},
        "type": "kubernetes.io/tls",
        "data": {
            "ca.crt": BASE64.encode(authority),
            "tls.crt": BASE64.encode(&leaf.certificate),
            "tls.key": BASE64.encode(&leaf.key),
        },
    })
}

/// Puts the authority where the API server is a client of a webhook; where there is none, nothing.
fn trust(client_config: &mut Value, authority: &str) {
    if client_config.is_object() {
        client_config["caBundle"] = json!(BASE64.encode(authority));
    }
}

fn certificate(object: &Value) -> Result<CertificateRequest, Error> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let metadata = &object["metadata"];
    let name = text(&metadata["name"]).unwrap_or_default();
    let names: Vec<String> = object["spec"]["dnsNames"].as_array().into_iter().flatten().filter_map(text).collect();
    match (text(&metadata["namespace"]), text(&object["spec"]["secretName"])) {
        (Some(namespace), Some(secret)) if !names.is_empty() => Ok(CertificateRequest { namespace, secret, names }),
        _ => Err(Error::Certificate { name }),
    }
}

/// The last part of an image's name, without tag.
fn last(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split([':', '@']).next().unwrap_or_default().to_owned()
}

/// The bundle's image with this last part of its name, by digest.
fn image(upstream: &str, index: &Index) -> Result<String, Error> {
    let name = last(upstream);
    let artifact = index.artifacts.iter().find(|a| a.registry && last(&a.name) == name);
    let artifact = artifact.ok_or(Error::Image { name })?;
    let repository = artifact.name.rsplit_once(':').map_or(artifact.name.as_str(), |(repository, _)| repository);
    Ok(format!("{repository}@{}", artifact.digest))
}

/// Replaces `${NAME:=default}`, `${NAME:-default}` and `${NAME}`.
fn resolve(text: &str) -> Result<String, Error> {
    let mut resolved = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((inner, tail)) = after.split_once('}') else { break };
        let (name, default) = match inner.split_once(":=").or_else(|| inner.split_once(":-")) {
            Some((name, default)) => (name, Some(default)),
            None => (inner, None),
        };
        // Descriptions of fields may speak of variables: only those in capitals are placeholders.
        let ours = !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        resolved.push_str(before);
        if ours {
            let set = SETTINGS.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
            let value = set.or(default).ok_or_else(|| Error::Placeholder { name: name.to_owned() })?;
            resolved.push_str(value);
            rest = tail;
        } else {
            resolved.push_str("${");
            rest = after;
        }
    }
    resolved.push_str(rest);
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: capi-system}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: clusters.cluster.x-k8s.io}
spec:
  conversion:
    strategy: Webhook
    webhook:
      clientConfig: {service: {name: s, namespace: capi-system}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: capi-controller-manager, namespace: capi-system}
spec:
  template:
    spec:
      containers:
      - args: ['--diagnostics-address=${CAPI_DIAGNOSTICS_ADDRESS:=:8443}', '--feature-gates=A=${EXP_A:=true},ClusterTopology=${CLUSTER_TOPOLOGY:=false}']
        image: gcr.io/k8s-staging-cluster-api/cluster-api-controller:main
        imagePullPolicy: Always
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: capi-serving-cert, namespace: capi-system}
spec:
  dnsNames: [s.capi-system.svc, s.capi-system.svc.cluster.local]
  secretName: s-cert
---
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: i, namespace: capi-system}
spec: {selfSigned: {}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: m}
webhooks:
- {name: a, clientConfig: {service: {name: s}}}
- {name: b, clientConfig: {service: {name: s}}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: providers.clusterctl.cluster.x-k8s.io}
spec: {scope: Namespaced}
";

    fn index() -> Index {
        serde_json::from_value(json!({
            "formatVersion": 1, "version": "0.1.0", "pinsDigest": "00", "kubernetesVersion": "v1.36.3",
            "artifacts": [{"name": "registry.k8s.io/cluster-api/cluster-api-controller:v1.14.2", "digest": "sha256:ab",
                "size": 1, "kind": "container", "registry": true, "source": "test"}],
            "programs": [],
        }))
        .unwrap()
    }

    const CORE: Provider =
        Provider { type_: "CoreProvider", name: "cluster-api", label: "cluster-api", namespace: "capi-system" };

    fn prepared() -> Vec<Document> {
        let all = documents(MANIFEST).enumerate();
        all.map(|(i, d)| prepare("core.yaml", Some(&CORE), i + 1, d, "CA", &index()).unwrap()).collect()
    }

    #[test]
    fn clusterctl_finds_what_belongs_to_a_provider() {
        let labels = json!({LABEL_CLUSTERCTL: "", LABEL_PROVIDER: "cluster-api"});
        for document in prepared() {
            if let Document::Object(object) = document {
                assert_eq!(object["metadata"]["labels"], labels, "{object}");
            }
        }
        let plain = prepare(
            "other.yaml",
            None,
            1,
            "{apiVersion: v1, kind: Namespace, metadata: {name: other}}",
            "CA",
            &index(),
        );
        assert_eq!(
            plain.unwrap(),
            Document::Object(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}}))
        );
        assert_eq!(CORE.entry("v1.14.2")["metadata"]["labels"]["clusterctl.cluster.x-k8s.io/core"], "inventory");
    }

    #[test]
    fn webhooks_trust_the_authority_of_the_appliance() {
        let all = prepared();
        let Document::Object(definition) = &all[1] else { panic!("{:?}", all[1]) };
        assert_eq!(definition["spec"]["conversion"]["webhook"]["clientConfig"]["caBundle"], BASE64.encode("CA"));
        let Document::Object(webhooks) = &all[5] else { panic!("{:?}", all[5]) };
        for webhook in webhooks["webhooks"].as_array().unwrap() {
            assert_eq!(webhook["clientConfig"]["caBundle"], BASE64.encode("CA"));
        }
        let Document::Object(namespace) = &all[0] else { panic!("{:?}", all[0]) };
        assert!(namespace.get("spec").is_none(), "nothing is added to others");
        let Document::Object(definition) = &all[6] else { panic!("{:?}", all[6]) };
        assert_eq!(definition["spec"], json!({"scope": "Namespaced"}), "nor to definitions of one version");
    }

    #[test]
    fn certificates_are_asked_of_us_and_issuers_of_nobody() {
        let all = prepared();
        let Document::Certificate(request) = &all[3] else { panic!("{:?}", all[3]) };
        assert_eq!((request.namespace.as_str(), request.secret.as_str()), ("capi-system", "s-cert"));
        assert_eq!(request.names, ["s.capi-system.svc", "s.capi-system.svc.cluster.local"]);
        assert_eq!(all[4], Document::Nothing);
    }

    #[test]
    fn placeholders_get_defaults_or_settings_and_images_a_digest() {
        let all = prepared();
        let Document::Object(deployment) = &all[2] else { panic!("{:?}", all[2]) };
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["args"][0], "--diagnostics-address=:8443");
        assert_eq!(container["args"][1], "--feature-gates=A=true,ClusterTopology=true");
        assert_eq!(container["image"], "registry.k8s.io/cluster-api/cluster-api-controller@sha256:ab");
        assert_eq!(container["imagePullPolicy"], "IfNotPresent");
    }

    #[test]
    fn a_placeholder_without_value_and_a_foreign_image_are_errors() {
        assert_eq!(resolve("${EXP_X}").unwrap_err().to_string(), "${EXP_X} has no value");
        assert_eq!(resolve("see ${variable} and ${").unwrap(), "see ${variable} and ${");
        assert!(matches!(image("example.org/other:1", &index()), Err(Error::Image { name }) if name == "other"));
    }
}
