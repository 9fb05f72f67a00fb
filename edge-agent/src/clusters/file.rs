//! The file of a cluster: YAML of one `EdgeCluster`, checked as strictly as a site file before the API server sees it.

use edge_api::EdgeCluster;
use edge_api::agent::ValidationError;
use edge_api::names::{GROUP, NAMESPACE, VERSION};
use kube::CustomResourceExt as _;
use serde_json::{Value, json};

use crate::site;

/// Reads a cluster, or every error with its place.
pub fn load(bytes: &[u8]) -> Result<EdgeCluster, Vec<ValidationError>> {
    let blank = (
        "an EdgeCluster: `apiVersion`, `kind`, `metadata` and `spec`",
        "`kubectl explain edgecluster.spec` tells about every field",
    );
    let content = site::document(bytes, schema(), blank)?;
    let mut cluster: EdgeCluster = serde_json::from_value(content).map_err(|error| {
        // The schema is a little wider than the types: a whole number may be written as 2.0.
        vec![ValidationError {
            line: 0,
            column: 0,
            field: String::new(),
            found: format!("a value that does not fit: {error}"),
            expected: "an EdgeCluster".to_owned(),
            hint: None,
        }]
    })?;
    cluster.metadata.namespace = Some(NAMESPACE.to_owned());
    Ok(cluster)
}

/// The schema that the API server has, without what it lets pass: unknown fields, and fields that it sets itself. A name
/// has room behind it for those of machines.
fn schema() -> Value {
    let definition = serde_json::to_value(EdgeCluster::crd()).unwrap_or_default();
    let spec = definition.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec");
    let texts = json!({"type": "object", "additionalProperties": {"type": "string"}});
    let mut schema = json!({
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"type": "string", "enum": [format!("{GROUP}/{VERSION}")]},
            "kind": {"type": "string", "enum": ["EdgeCluster"]},
            "metadata": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {
                        "type": "string", "minLength": 1, "maxLength": 51, "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$",
                    },
                    "namespace": {"type": "string", "enum": [NAMESPACE]},
                    "labels": texts,
                    "annotations": texts,
                },
            },
            "spec": spec,
        },
    });
    close(&mut schema);
    schema
}

/// Refuses every field that is not named.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("properties").is_some_and(Value::is_object) && object.get("type") == Some(&json!("object")) {
                object.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
            object.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = include_str!("../../../examples/site/clusters/shop.yaml");

    fn errors(text: &str) -> Vec<(u32, String, String, Option<String>)> {
        let errors = load(text.as_bytes()).unwrap_err();
        errors.into_iter().map(|e| (e.line, e.field, e.expected, e.hint)).collect()
    }

    fn line_of(text: &str, part: &str) -> u32 {
        text.lines().position(|line| line.contains(part)).unwrap() as u32 + 1
    }

    #[test]
    fn the_example_is_a_cluster() {
        let shop = load(SHOP.as_bytes()).unwrap();
        assert_eq!(shop.metadata.name.as_deref(), Some("shop"));
        assert_eq!(shop.metadata.namespace.as_deref(), Some(NAMESPACE));
        assert_eq!((shop.spec.control_plane.size, shop.spec.workers[0].size), (1, 1));
        assert_eq!(shop.spec.control_plane.hardware.memory_mib, 2560);
    }

    #[test]
    fn every_error_has_its_line_and_field() {
        let bad = SHOP
            .replace("virtualIP:", "virtualIp:")
            .replace("vcpus: 2", "vcpus: two")
            .replace("- name: general", "- name: General")
            .replacen("size: 1", "size: 7", 1)
            .replace("name: shop", "name: shop\n  uid: 1");
        let found = errors(&bad);
        let at = |field: &str| found.iter().find(|(_, name, ..)| name == field).unwrap_or_else(|| panic!("{found:#?}"));
        let (line, _, expected, _) = at("metadata.uid");
        assert_eq!(
            (*line, expected.as_str()),
            (line_of(&bad, "uid:"), "one of `annotations`, `labels`, `name`, `namespace`")
        );
        let (line, _, _, hint) = at("spec.virtualIp");
        assert_eq!((*line, hint.as_deref()), (line_of(&bad, "virtualIp"), Some("did you mean `virtualIP`?")));
        assert_eq!(at("spec.virtualIP").2, "text of 7 to 15 characters");
        let (line, _, expected, _) = at("spec.controlPlane.size");
        assert_eq!((*line, expected.as_str()), (line_of(&bad, "size: 7"), "a whole number from 1 to 5"));
        assert_eq!(at("spec.controlPlane.hardware.vcpus").2, "a whole number from 1 to 512");
        let (line, _, expected, hint) = at("spec.workers[0].name");
        assert_eq!(*line, line_of(&bad, "General"));
        assert!(expected.starts_with("1 to 32 lower-case letters") && hint.is_some(), "{expected}");
    }

    #[test]
    fn files_of_something_else_are_refused() {
        let text = "apiVersion: cluster.x-k8s.io/v1beta2\nkind: Cluster\nmetadata: {name: shop, namespace: default}\n";
        let fields: Vec<_> = errors(text).into_iter().map(|(line, field, ..)| (line, field)).collect();
        let expected = [(1, "spec"), (1, "apiVersion"), (2, "kind"), (3, "metadata.namespace")];
        for (line, field) in expected {
            assert!(fields.contains(&(line, field.to_owned())), "{field} in {fields:?}");
        }
        assert_eq!(errors(&format!("{SHOP}\n---\n{SHOP}")).len(), 1, "one cluster in a file");
        assert!(errors("")[0].2.starts_with("an EdgeCluster"));
    }

    #[test]
    fn free_values_stay_as_they_are() {
        let parameters = "  parameters:\n    web:\n      replicas: 2\n      colours: [red, {deep: true}]\nspec:\n";
        let text = SHOP
            .replace("spec:\n", &parameters.replace("  parameters", "spec:\n  parameters").replace("\nspec:\n", "\n"));
        let shop = load(text.as_bytes()).unwrap();
        assert_eq!(shop.spec.parameters["web"]["colours"], json!(["red", {"deep": true}]));
    }
}
