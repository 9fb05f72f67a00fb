//! The local registry: its objects, its logins, uploads into it, what is in it, and probes of it (D6, R-17).

pub mod content;
pub mod login;
pub mod objects;
pub mod probe;
pub mod reference;
pub mod upload;
