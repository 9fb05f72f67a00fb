//! Objects of a text, with and without templates.

#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::time::Duration;

use edge_profiles::{Content, RenderedLayer, parse_objects, render_objects};
use serde_json::{Value, json};

const TEXT: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: a}
data:
  list: \"{{ parameters.list }}\"
  text: \"<{{ parameters.text }}>\"
---
# nothing
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Secret, metadata: {name: \"{{ cluster.name }}\"}}
";

#[test]
fn templates_see_the_values_and_no_value_breaks_out() {
    let text = "x\"\nkind: Secret\n- {{ cluster.name }}";
    let values = json!({"cluster": {"name": "shop"}, "parameters": {"list": ["1"], "text": text}});
    let objects = render_objects("inline", TEXT, &values).unwrap();
    let expected = json!([
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"},
            "data": {"list": ["1"], "text": format!("<{text}>")}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "shop"}},
    ]);
    assert_eq!(Value::from(objects), expected);
}

#[test]
fn what_is_wrong_has_its_line() {
    let values = json!({"cluster": {"name": "shop"}, "parameters": {"list": []}});
    let error = render_objects("inline", TEXT, &values).unwrap_err().to_string();
    assert!(error.starts_with("inline:6: ") && error.contains("parameters.text"), "{error}");
    let error = render_objects("inline", "kind: x\nmetadata: {name: a}\n", &values).unwrap_err().to_string();
    assert_eq!(error, "inline:1: expected an object with a apiVersion");
    assert!(render_objects("inline", "a: [", &values).is_err());
    assert!(parse_objects("file", "a: [").is_err());
}

#[test]
fn without_templates_a_text_is_taken_as_it_is() {
    let objects = parse_objects("file", TEXT).unwrap();
    assert_eq!(objects[0]["data"]["text"], "<{{ parameters.text }}>");
    assert_eq!(objects[1]["metadata"]["name"], "{{ cluster.name }}");
}

#[test]
fn a_layer_of_objects_has_labels_and_a_digest() {
    let layer = |value: &str| {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": value}});
        RenderedLayer::of_objects("network", "shop", None, Duration::from_secs(1), vec![object]).unwrap()
    };
    let one = layer("1");
    let Content::Objects(objects) = &one.content else { unreachable!("objects were given") };
    let labels = json!({"pcg-edge.io/layer": "network", "pcg-edge.io/profile": "shop"});
    assert_eq!(objects[0]["metadata"]["labels"], labels);
    assert_eq!(one.digest, layer("1").digest);
    assert_ne!(one.digest, layer("2").digest);
}
