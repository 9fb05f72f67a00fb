//! One template text in, one value out: strict, without a way back into the file it stands in (D9).
//!
//! The caller has taken the text out of its file (a YAML scalar, an XML text, a whole plain file) and puts the result
//! back with that file's own writer, so no value can end the place it was put in.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};
use serde::Serialize;

/// Instructions one template may take: enough for any real one, and an end to loops over loops.
const FUEL: u64 = 200_000;

/// Why a text could not be rendered.
#[derive(Debug)]
pub(crate) struct TemplateError {
    /// Lines below the first line of the text, from 0.
    pub line_offset: usize,
    /// What is wrong, with the name that is missing.
    pub message: String,
}

/// Renders texts with one set of values.
pub(crate) struct Renderer {
    env: Environment<'static>,
    context: Value,
}

impl Renderer {
    /// `values` is what templates see at their root.
    pub fn new(values: &impl Serialize) -> Self {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_fuel(Some(FUEL));
        // Debug mode names the undefined expression in errors; the dump of local values that it also collects is
        // never printed.
        env.set_debug(true);
        if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
            env.set_syntax(syntax);
        }
        Self { env, context: Value::from(Serde(values)) }
    }

    /// Renders a text to a text.
    pub fn text(&self, source: &str) -> Result<String, TemplateError> {
        if !source.contains("{{") && !source.contains("{%") && !source.contains("{#") {
            return Ok(source.to_owned());
        }
        let template = self.env.template_from_str(source).map_err(|e| explain(&e))?;
        template.render(self.context.clone()).map_err(|e| explain(&e))
    }

    /// Renders a scalar. A text that is exactly one `{{ expression }}` keeps the type of its value: a number stays a
    /// number, a list a list. Everything else becomes a text.
    pub fn value(&self, source: &str) -> Result<serde_json::Value, TemplateError> {
        let inner = source.trim().strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
        // `{{ a }}-{{ b }}` also begins and ends like that, but what lies between is no expression.
        let Some(expression) = inner.and_then(|inner| self.env.compile_expression(inner).ok()) else {
            return self.text(source).map(serde_json::Value::String);
        };
        let value = expression.eval(self.context.clone()).map_err(|e| explain(&e))?;
        if value.is_undefined() {
            let name = inner.unwrap_or_default().trim();
            return Err(TemplateError { line_offset: 0, message: format!("`{name}` is undefined here") });
        }
        serde_json::to_value(&value).map_err(|_| TemplateError {
            line_offset: 0,
            message: "the expression gives something that is no text, number, list or mapping".to_owned(),
        })
    }
}

fn explain(error: &minijinja::Error) -> TemplateError {
    let detail = error.detail().unwrap_or_default();
    let message = match error.kind() {
        ErrorKind::UndefinedError if !detail.is_empty() => format!("{detail} here"),
        kind if detail.is_empty() => kind.to_string(),
        kind => format!("{kind}: {detail}"),
    };
    TemplateError { line_offset: error.line().unwrap_or(1).saturating_sub(1), message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn renderer() -> Renderer {
        Renderer::new(&json!({"site": {"device_id": "store-1", "lan_prefix": 24, "dns": ["1.1.1.1", "9.9.9.9"]}}))
    }

    #[test]
    fn single_expressions_keep_their_type() {
        let r = renderer();
        assert_eq!(r.value("{{ site.lan_prefix }}").unwrap(), json!(24));
        assert_eq!(r.value(" {{ site.dns }} ").unwrap(), json!(["1.1.1.1", "9.9.9.9"]));
        assert_eq!(r.value("/{{ site.lan_prefix }}").unwrap(), json!("/24"));
        assert_eq!(r.value("{{ site.lan_prefix }}-{{ site.lan_prefix }}").unwrap(), json!("24-24"));
        assert_eq!(r.value("{{ site.lan_prefix | string }}").unwrap(), json!("24"));
        assert_eq!(r.value("plain").unwrap(), json!("plain"));
        assert_eq!(r.value("{% if site.proxy is defined %}yes{% else %}no{% endif %}").unwrap(), json!("no"));
    }

    #[test]
    fn missing_names_are_named_with_their_line() {
        let r = renderer();
        for text in ["{{ site.lan_ip }}", "a {{ site.lan_ip }}", "{{ site.lan_ip ~ 'x' }}"] {
            let error = r.value(text).unwrap_err();
            assert!(error.message.contains("site.lan_ip"), "{text}: {}", error.message);
        }
        assert!(r.value("{{ site.proxy.http }}").unwrap_err().message.contains("site.proxy"));
        assert_eq!(r.text("one\ntwo\n{{ nothing }}\n").unwrap_err().line_offset, 2);
        assert!(r.text("{{ broken").is_err());
    }

    #[test]
    fn values_are_not_templates() {
        let r = Renderer::new(&json!({"site": {"device_id": "{{ site.secret }}"}}));
        assert_eq!(r.text("<{{ site.device_id }}>\n").unwrap(), "<{{ site.secret }}>\n");
    }

    #[test]
    fn endless_templates_end() {
        let r = renderer();
        let text = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        assert!(r.text(text).is_err());
    }
}
