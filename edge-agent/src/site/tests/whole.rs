//! Defaults, differences, template, schema and field reference.

use edge_api::site::NetworkType;

use super::*;

#[test]
fn defaults() {
    let networks = |text: &str| {
        let networks = effective_networks(&valid(text));
        assert_eq!((networks[0].name.as_str(), networks[1].name.as_str()), ("wan", "lan"));
        assert_eq!((networks[0].type_, networks[1].type_), (NetworkType::Nat, NetworkType::Isolated));
        networks[0].address.unwrap().to_string()
    };
    assert_eq!(networks("mode: standalone\n"), "192.168.150.1/24");
    assert_eq!(networks(ROUTER), "192.168.150.1/24");
    assert_eq!(networks(&ROUTER.replace("150.2/24", "150.1/24")), "192.168.150.2/24");
    assert_eq!(networks(&format!("{ROUTER}  wan_gateway: 192.168.150.254\n")), "192.168.150.254/24");
    let pools = effective_pools(&SiteConfig::default(), Path::new("/opt/x"));
    assert_eq!((pools.len(), pools[0].path.as_str()), (1, "/opt/x/pools/default"));
}

#[test]
fn differences() {
    let base = valid(ROUTER);
    assert!(diff(&base, &base).is_empty());
    let check = |new: &str, live: &[&str], reinstall: &[&str]| {
        let changes = diff(&base, &valid(new));
        assert_eq!(
            (changes.live, changes.needs_reinstall),
            (live.iter().map(|f| (*f).to_owned()).collect(), reinstall.iter().map(|f| (*f).to_owned()).collect(),),
            "{new}"
        );
    };
    check(&ROUTER.replace("200.150", "200.140"), &["router.dhcp_range.end"], &[]);
    check(
        &format!("{ROUTER}device_id: b\nhost: {{dns: [1.1.1.1], ntp: [a]}}\n"),
        &["host.ntp"],
        &["device_id", "host.dns"],
    );
    check(&format!("{ROUTER}profile: p.tar\nhub: {{endpoint: h}}\n"), &["hub", "profile"], &[]);
    check(&format!("{ROUTER}proxy: {{http: 'http://p:1', https: 'http://p:1'}}\n"), &["proxy"], &[]);
    // The default network follows the router.
    check(&ROUTER.replace("192.168.150.2", "192.168.160.2"), &[], &["router.wan_ip", "networks.wan.address"]);
    // Naming the defaults changes nothing.
    let named = format!(
        "{ROUTER}networks:\n  - {{name: wan, type: nat, address: 192.168.150.1/24}}\n  - {{name: lan, type: isolated}}\n"
    );
    check(&named, &[], &[]);
    check(&format!("{named}  - {{name: x, type: isolated}}\n"), &["networks.x"], &[]);
    let leases = "150.1/24, dhcp_range: {start: 192.168.150.100, end: 192.168.150.150}";
    check(&named.replace("150.1/24", leases), &[], &["networks.wan.dhcp_range"]);
    check(&named.replace("isolated", "bridge, bridge: br0"), &[], &["networks.lan.type", "networks.lan.bridge"]);
    check("mode: standalone\n", &["router"], &[]);
    let pools = |text: &str| valid(&format!("storage_pools: [{text}]\n"));
    let (one, two) = (pools("{name: a, path: /a}"), pools("{name: a, path: /a}, {name: b, path: /b}"));
    assert_eq!(diff(&one, &two).live, ["storage_pools.b"]);
    assert_eq!(diff(&two, &one).needs_reinstall, ["storage_pools.b"]);
    assert_eq!(diff(&one, &pools("{name: a, path: /c}")).needs_reinstall, ["storage_pools.a.path"]);
    assert_eq!(diff(&SiteConfig::default(), &one).needs_reinstall, ["storage_pools"]);
}

#[test]
fn what_needs_a_reinstall_stays_as_installed() {
    let installed = valid(&format!("{ROUTER}device_id: a\n"));
    for text in [
        format!("{ROUTER}device_id: b\nhost: {{dns: [1.1.1.1], ntp: [a]}}\nprofile: p\n"),
        ROUTER.replace("192.168.150.2", "192.168.160.2"),
        format!("{ROUTER}storage_pools: [{{name: a, path: /a}}]\n"),
        format!(
            "{ROUTER}networks: [{{name: wan, type: isolated}}, {{name: lan, type: bridge, bridge: b}}, {{name: x, type: isolated}}]\n"
        ),
        ROUTER.replace("200.150", "200.140"),
        "mode: standalone\n".to_owned(),
    ] {
        let new = valid(&text);
        let followed = as_installed(&installed, &new);
        // Nothing of what is followed needs a reinstall, and following it again changes nothing.
        assert_eq!(diff(&installed, &followed).needs_reinstall, Vec::<String>::new(), "{text}");
        assert_eq!(diff(&installed, &followed).live, diff(&installed, &new).live, "{text}");
        assert!(diff(&followed, &as_installed(&installed, &followed)).is_empty(), "{text}");
    }
}

#[test]
fn the_template_is_valid_as_it_is_and_with_every_line() {
    assert_eq!(TEMPLATE.lines().next(), Some("# yaml-language-server: $schema=unattended.schema.json"));
    assert_eq!(valid(TEMPLATE), SiteConfig::default());
    // A setting is commented by `#` right before it, or before its indentation; an explanation by `# `.
    let setting = |line: &str| {
        let rest = line.strip_prefix('#')?;
        (!rest.is_empty() && (!rest.starts_with(' ') || rest.starts_with("  "))).then(|| rest.to_owned())
    };
    let full: String = TEMPLATE.lines().map(|line| setting(line).unwrap_or_else(|| line.to_owned()) + "\n").collect();
    let site = valid(&full);
    assert!(diff(&SiteConfig::default(), &site).needs_reinstall.contains(&"device_id".to_owned()));
    // Every field of the schema is in it.
    let schema = schema();
    let mut fields: Vec<String> = Vec::new();
    let mut collect = |node: &serde_json::Value| {
        fields.extend(node["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone()));
    };
    collect(&schema);
    schema["$defs"].as_object().unwrap().values().for_each(&mut collect);
    for field in fields {
        assert!(
            full.lines().any(|line| line.trim_start_matches([' ', '-']).starts_with(&format!("{field}:"))),
            "{field}"
        );
    }
}

#[test]
fn the_field_reference_is_complete() {
    let docs = include_str!("../../../../docs/site-file.md");
    let schema = schema();
    for (name, node) in schema["properties"].as_object().unwrap() {
        assert!(docs.contains(&format!("| `{name}` |")) || docs.contains(&format!("| `{name}.")), "{name}");
        let list = node.pointer("/items/$ref").is_some();
        let reference = node.pointer("/items/$ref").or(node.get("$ref")).or(node.pointer("/anyOf/0/$ref"));
        let Some(reference) = reference.and_then(|r| r.as_str()) else { continue };
        let below = schema.pointer(&format!("{}/properties", reference.trim_start_matches('#')));
        for field in below.and_then(|fields| fields.as_object()).into_iter().flatten().map(|(name, _)| name) {
            let path = if list { format!("`{name}[].{field}`") } else { format!("`{name}.{field}`") };
            assert!(docs.contains(&path), "{path}");
        }
    }
    // Its example is valid.
    let example = docs.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    valid(example);
}

#[test]
fn the_schema_for_editors_accepts_the_template() {
    let json: serde_json::Value = serde_saphyr::from_str(TEMPLATE).unwrap();
    assert!(jsonschema::is_valid(&schema(), &json));
    assert!(!jsonschema::is_valid(&schema(), &serde_json::json!({"device-id": "a"})));
}
