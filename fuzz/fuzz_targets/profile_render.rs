//! Rendering: whatever a site's values are, each stands in the result exactly, in the one place that it was put in, or
//! the layer is refused; whatever a template is, rendering it changes its scalars and nothing of its shape.
//!
//! An input is four parts with `%%` lines between them: `values`, `yaml` or `xml`; `site.device_id`; the one entry of
//! `site.dns`; the template, which `values` does not need.

#![no_main]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use edge_fuzz::{Element, has_xml, xml};
use edge_profiles::{Content, Error, RenderContext, RenderedLayer, SiteProperties, load, render};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use uuid::Uuid;

fuzz_target!(|input: &str| {
    let mut parts = input.splitn(4, "\n%%\n");
    let (kind, device_id, dns) = (parts.next(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let template = parts.next().unwrap_or_default();
    let dns = vec![dns.to_owned()];
    let site = SiteProperties { device_id: device_id.to_owned(), dns, ..SiteProperties::default() };
    match kind.and_then(|kind| kind.bytes().next()) {
        Some(b'y') => yaml_template(site, template),
        Some(b'x') => xml_template(site, template),
        _ => values(site),
    }
});

/// Every kind of place that a value can be put in.
fn values(site: SiteProperties) {
    const YAML: &str = "a: \"{{ site.device_id }}\"\n'k{{ site.device_id }}': >-\n  x{{ site.device_id }}y\nlist:\n\
        - \"{{ site.dns }}\"\n- {n: '{{ site.dns[0] }}{{ site.device_id }}'}\n";
    const XML: &str =
        "<r a='{{ site.device_id }}' b='x'>[{{ site.device_id }}]<e><![CDATA[{{ site.dns[0] }}]]></e></r>";
    let (id, dns) = (site.device_id.clone(), site.dns[0].clone());
    let object =
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata:\n  {}", YAML.replace('\n', "\n  "));
    let yaml = json!({"a": id, format!("k{id}"): format!("x{id}y"), "list": [[dns], {"n": format!("{dns}{id}")}]});

    let files = [("files/a.yaml", YAML), ("files/a.txt", "<{{ site.device_id }}>\n")];
    let layers = rendered(&site, YAML, &object, &files).expect("any value has a place in YAML and in plain text");
    assert_eq!(chart_values(&layers), &yaml);
    let Content::Objects(objects) = &layers[1].content else { panic!("a manifest is objects") };
    assert_eq!((objects.len(), &objects[0]["kind"]), (1, &json!("ConfigMap")));
    assert_eq!(objects[0]["data"], yaml);
    let files = guest_files(&layers);
    assert_eq!(read_yaml(&files["a.yaml"]), yaml);
    assert_eq!(files["a.txt"], format!("<{id}>\n"));

    let layers = rendered(&site, "{}", OBJECT, &[("files/a.xml", XML)]);
    assert_eq!(layers.is_ok(), has_xml(&id) && has_xml(&dns));
    let Ok(layers) = layers else { return };
    let document = xml(&guest_files(&layers)["a.xml"]).unwrap();
    let leaf = Element { name: "e".to_owned(), attributes: Vec::new(), text: dns, children: Vec::new() };
    let attributes = vec![("a".to_owned(), id.clone()), ("b".to_owned(), "x".to_owned())];
    let root = Element { name: "r".to_owned(), attributes, text: format!("[{id}]"), children: vec![leaf] };
    assert_eq!(document.children, [root]);
}

fn yaml_template(site: SiteProperties, template: &str) {
    // The same text whose templates are none.
    let plain = template.replace("{{", "((").replace("{%", "(%").replace("{#", "(#");
    let (Ok(layers), Ok(plain)) = (
        rendered(&site, template, OBJECT, &[("files/a.yaml", template)]),
        rendered(&site, &plain, OBJECT, &[("files/a.txt", "")]),
    ) else {
        return;
    };
    same_shape(chart_values(&plain), chart_values(&layers));
    let written = &guest_files(&layers)["a.yaml"];
    // Several documents are merged in a chart's values.
    if !written.contains("\n---\n") && !written.is_empty() {
        assert_eq!(&read_yaml(written), chart_values(&layers), "{written}");
    }
}

/// Mappings have the same keys where these are no templates, lists are as long, and only templates change.
fn same_shape(plain: &Value, rendered: &Value) {
    match (plain, rendered) {
        (Value::Object(plain), Value::Object(rendered)) => {
            assert_eq!(plain.len(), rendered.len(), "{plain:?} {rendered:?}");
            for (key, value) in plain.iter().filter(|(key, _)| !is_template(key)) {
                same_shape(value, rendered.get(key).unwrap_or_else(|| panic!("{key:?} is not in {rendered:?}")));
            }
        }
        (Value::Array(plain), Value::Array(rendered)) => {
            assert_eq!(plain.len(), rendered.len(), "{plain:?} {rendered:?}");
            plain.iter().zip(rendered).for_each(|(plain, rendered)| same_shape(plain, rendered));
        }
        // One expression may be of any type, everything else is a text.
        (Value::String(text), rendered) if is_template(text) => {
            assert!(rendered.is_string() || text.trim().starts_with("((") && text.trim().ends_with("}}"), "{text:?}");
        }
        (plain, rendered) => assert_eq!(plain, rendered),
    }
}

fn is_template(text: &str) -> bool {
    ["((", "(%", "(#"].iter().any(|mark| text.contains(mark))
}

fn xml_template(site: SiteProperties, template: &str) {
    let Ok(layers) = rendered(&site, "{}", OBJECT, &[("files/a.xml", template)]) else { return };
    // What another reader refuses has no shape; a namespace that is a value changes the names of others.
    let Ok(mut plain) = xml(template) else { return };
    if template.contains("xmlns") {
        return;
    }
    let rendered = &guest_files(&layers)["a.xml"];
    let mut found = xml(rendered).unwrap_or_else(|e| panic!("not well-formed: {e}\n{rendered}"));
    without_values(&mut plain);
    without_values(&mut found);
    assert_eq!(found, plain, "{rendered}");
}

fn without_values(element: &mut Element) {
    if !element.name.starts_with(['!', '?']) {
        element.text.clear();
    }
    element.attributes.iter_mut().for_each(|(_, value)| value.clear());
    element.children.iter_mut().for_each(without_values);
}

const OBJECT: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";

/// A profile of a chart with these values, these objects and a machine with these files.
fn rendered(
    site: &SiteProperties,
    values: &str,
    objects: &str,
    files: &[(&str, &str)],
) -> Result<Vec<RenderedLayer>, Error> {
    const PROFILE: &str = "{name: p, version: '1', layers: [{name: chart, kind: chart, path: chart}, \
        {name: objects, kind: manifest, path: objects.yaml}, {name: machine, kind: vm, path: machine}]}";
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| fs::write(dir.path().join(path), text).unwrap();
    for folder in ["chart/chart", "machine/files"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    write("profile.yaml", PROFILE);
    write("chart/chart/Chart.yaml", "version: 1.0.0");
    write("chart/values.yaml", values);
    write("objects.yaml", objects);
    write("machine/vm.yaml", "{vcpus: 1, memoryMiB: 64, rootDisk: {pool: default, sizeGiB: 1}, configDisk: {}}");
    files.iter().for_each(|(path, text)| write(&format!("machine/{path}"), text));
    let ctx = RenderContext {
        site: site.clone(),
        appliance_id: Uuid::from_u128(1),
        namespace: "default".to_owned(),
        images: BTreeMap::new(),
    };
    render(&load(Path::new(dir.path())).unwrap(), &ctx)
}

fn chart_values(layers: &[RenderedLayer]) -> &Value {
    match &layers[0].content {
        Content::Chart { values, .. } => values,
        Content::Objects(_) => panic!("a chart is a chart"),
    }
}

/// The files for the guest, from the Secret that carries them.
fn guest_files(layers: &[RenderedLayer]) -> BTreeMap<String, String> {
    let Content::Objects(objects) = &layers[2].content else { panic!("a machine is objects") };
    let [secret, machine] = objects.as_slice() else { panic!("expected a Secret and a machine: {objects:?}") };
    assert_eq!((&secret["kind"], &machine["kind"]), (&json!("Secret"), &json!("VirtualMachine")));
    let data = secret["data"].as_object().unwrap().iter();
    data.map(|(name, text)| {
        let bytes = STANDARD.decode(text.as_str().unwrap()).unwrap();
        (name.clone(), String::from_utf8(bytes).unwrap())
    })
    .collect()
}

/// As another reader than ours sees it.
fn read_yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("another reader refuses it: {e}\n{text}"))
}
