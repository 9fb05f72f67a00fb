//! The site file: parsing, rules and template.

use edge_api::SiteConfig;
use edge_api::agent::ValidationError;

/// What a change of the site file touches.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    /// Fields that are applied to the running appliance.
    pub live: Vec<String>,
    /// Fields that need a reinstall.
    pub needs_reinstall: Vec<String>,
}

/// Commented example of a site file.
pub const TEMPLATE: &str = "";

/// Reads a site file; all errors at once.
pub fn load(_text: &str) -> Result<SiteConfig, Vec<ValidationError>> {
    Ok(SiteConfig::default())
}

/// Compares two valid site files.
pub fn diff(_old: &SiteConfig, _new: &SiteConfig) -> Changes {
    Changes::default()
}

/// JSON Schema of the site file.
pub fn schema() -> serde_json::Value {
    serde_json::Value::Null
}
