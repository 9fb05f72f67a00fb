//! The whole way from text to errors: every kind of bad input with its exact place, and hostile files.

mod fields;
mod reading;
mod values;
mod whole;

use edge_api::agent::ValidationError;
use edge_api::site::SiteConfig;

use super::*;

const ROUTER: &str = "router:
  lan_ip: 192.168.200.1/24
  wan_ip: 192.168.150.2/24
  dhcp_range: {start: 192.168.200.100, end: 192.168.200.150}
";

fn errors(text: &str) -> Vec<ValidationError> {
    load(text).expect_err(text)
}

fn valid(text: &str) -> SiteConfig {
    load(text).unwrap_or_else(|errors| panic!("{text}\n{errors:#?}"))
}

/// Line, column and field of each error.
fn places(text: &str) -> Vec<(u32, u32, String)> {
    errors(text).into_iter().map(|error| (error.line, error.column, error.field)).collect()
}

#[track_caller]
fn refused_at(text: &str, expected: &[(u32, u32, &str)]) {
    let expected: Vec<_> = expected.iter().map(|(line, column, field)| (*line, *column, (*field).to_owned())).collect();
    assert_eq!(places(text), expected, "{text}\n{:#?}", errors(text));
}

fn router(lan: &str, wan: &str, start: &str, end: &str) -> String {
    format!("router:\n  lan_ip: {lan}\n  wan_ip: {wan}\n  dhcp_range:\n    start: {start}\n    end: {end}\n")
}
