use proptest::prelude::*;
use serde_json::json;

use super::*;

fn one(text: &str) -> Value {
    parse_one("f.yaml", text).unwrap().to_json()
}

#[test]
fn scalars_have_the_types_that_kubectl_gives_them() {
    let text = "a: 1\nb: -0x1F\nc: 0644\nd: 0o17\ne: 1.5\nf: true\ng: ~\nh: '1'\ni: yes\nj: 1.2.3\nk: 1e3\nl: 10.0.0.0/8\n\
                m: 09\nn: !!str 5\no: 18446744073709551615\np:\nq: 192.168.1.1\nr: +12\ns: 0\nt: 1_000\n";
    let expected = json!({"a": 1, "b": -31, "c": 420, "d": 15, "e": 1.5, "f": true, "g": null, "h": "1", "i": "yes",
        "j": "1.2.3", "k": 1000.0, "l": "10.0.0.0/8", "m": 9.0, "n": "5", "o": u64::MAX, "p": null, "q": "192.168.1.1",
        "r": 12, "s": 0, "t": "1_000"});
    assert_eq!(one(text), expected);
}

#[test]
fn refusals_name_file_and_line() {
    let cases = [
        ("a: 1\nb: *x\n", "f.yaml:2:"),
        ("a: &x 1\nb: *x\n", "f.yaml:2: aliases"),
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3: key \"a\" is there twice"),
        ("a: {{ site.x }}\n", "f.yaml:1: a key has to be a text"),
        ("a: !thing 1\n", "f.yaml:1: tags"),
        ("a: [1\n", "f.yaml:"),
        ("a: 1\n---\nb: 2\n", "f.yaml:3: a second document"),
        ("# nothing\n", "f.yaml:0: is empty"),
        ("a: .inf\n", "f.yaml:1: .inf"),
    ];
    for (text, expected) in cases {
        let error = parse_one("f.yaml", text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text:?}: {error}");
    }
    let deep = "[".repeat(10_000);
    assert!(parse("f.yaml", &deep).is_err());
    assert!(parse("f.yaml", &"- ".repeat(10_000)).is_err());
}

#[test]
fn missing_names_are_reported_on_their_own_line() {
    let node = parse_one("f.yaml", "a:\n  - x\n  - |\n    one\n    {{ site.nothing }}\n").unwrap();
    let error = node.render("f.yaml", &Renderer::new(&json!({"site": {}}))).unwrap_err().to_string();
    assert!(error.contains("site.nothing"), "{error}");
    assert!(error.starts_with("f.yaml:5:") || error.starts_with("f.yaml:4:"), "{error}");
}

#[test]
fn documents_and_order_are_kept() {
    let documents = parse("f.yaml", "---\nz: 1\na: 2\n---\n---\nb: [1, {c: d}]\n").unwrap();
    assert_eq!(documents.len(), 2);
    assert_eq!(write(&documents[0]), "\"z\": 1\n\"a\": 2\n");
    assert_eq!(one(&write(&documents[1])), json!({"b": [1, {"c": "d"}]}));
}

#[test]
fn long_keys_are_explicit() {
    let (letters, escapes) = ("k".repeat(1100), "\0".repeat(200));
    let values = json!({"k": letters, "e": escapes, "map": {(&letters): 1, "x": {(&escapes): 2}}});
    let text = "a:\n  '{{ k }}': {b: 1}\n  '{{ e }}': 2\n  c: '{{ map }}'\n  d:\n  - '{{ k }}': 3\n";
    let rendered = parse_one("f.yaml", text).unwrap().render("f.yaml", &Renderer::new(&values)).unwrap();
    let written = write(&rendered);
    let expected = json!({"a": {(&letters): {"b": 1}, (&escapes): 2, "c": values["map"], "d": [{(&letters): 3}]}});
    assert_eq!(one(&written), expected);
    let foreign: Value = serde_saphyr::from_str(&written).unwrap();
    assert_eq!(foreign, expected);
}

proptest! {
    /// Whatever a site's value is, it comes back exactly: it cannot end the scalar it stands in.
    #[test]
    fn any_value_survives(value in hostile_text(), other in any::<i64>()) {
        let template = parse_one("t.yaml", "key: \"{{ v }}\"\ntext: 'a {{ v }} b'\nlist:\n  - {n: '{{ n }}'}\n'{{ v }}k': 1\n").unwrap();
        let rendered = template.render("t.yaml", &Renderer::new(&json!({"v": value, "n": other}))).unwrap();
        let key = format!("{value}k");
        let expected = json!({"key": value, "text": format!("a {value} b"), "list": [{"n": other}], key: 1});
        prop_assert_eq!(&rendered.to_json(), &expected);
        let written = write(&rendered);
        prop_assert_eq!(&one(&written), &expected);
        // Another reader, so that our writer and our reader cannot be wrong together.
        let foreign: Value = serde_saphyr::from_str(&written).unwrap();
        prop_assert_eq!(foreign, expected);
    }
}

/// Texts made of what YAML finds special, and any others.
fn hostile_text() -> impl Strategy<Value = String> {
    let special = prop::sample::select(vec![
        "\"", "'", "\n", "\r\n", "\t", ": ", "- ", "# ", "{{", "}}", "{%", "]]>", "---", "...", "&a", "*a", "!!str",
        "%", "@", "`", "|", ">", "\\", "\u{85}", "\u{2028}", "\u{feff}", "\u{7f}", "\0", "null", "~", "yes", "0644",
        " ",
    ]);
    prop_oneof![any::<String>(), prop::collection::vec(special, 0..12).prop_map(|parts| parts.concat())]
}
