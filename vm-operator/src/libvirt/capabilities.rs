//! Which domain type to use: KVM only where the CPU has it.
//!
//! A `/dev/kvm` that opens and a libvirt that advertises `kvm` are not enough: on hosts whose CPU shows neither `vmx`
//! nor `svm`, stock guests hang on it. So both are asked: libvirt's domain types, and the host CPU's features.

use serde::Deserialize;

use super::{Error, xml};

/// How guests are executed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Accelerator {
    /// Hardware virtualization.
    Kvm,
    /// QEMU's translator.
    Tcg,
    /// A driver that knows neither, such as libvirt's test driver; its domain type.
    Other(String),
}

impl Accelerator {
    /// libvirt's domain type.
    pub fn domain_type(&self) -> &str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "qemu",
            Self::Other(name) => name,
        }
    }

    /// Word in status.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::Other(name) => name,
        }
    }
}

#[derive(Deserialize)]
struct Capabilities {
    host: Host,
    #[serde(default, rename = "guest")]
    guests: Vec<Guest>,
}

#[derive(Deserialize)]
struct Host {
    cpu: Option<Cpu>,
}

#[derive(Deserialize)]
struct Cpu {
    #[serde(default)]
    arch: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default, rename = "feature")]
    features: Vec<Feature>,
}

#[derive(Deserialize)]
struct Feature {
    #[serde(rename = "@name")]
    name: String,
    #[serde(default, rename = "@policy")]
    policy: Option<String>,
}

#[derive(Deserialize)]
struct Guest {
    #[serde(default)]
    os_type: String,
    arch: Arch,
}

#[derive(Deserialize)]
struct Arch {
    #[serde(rename = "@name")]
    name: String,
    #[serde(default, rename = "domain")]
    domains: Vec<Domain>,
}

#[derive(Deserialize)]
struct Domain {
    #[serde(rename = "@type")]
    type_: String,
}

/// Host CPU and domain types of a capabilities document.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Read {
    /// Domain types for `x86_64` guests, in libvirt's order.
    pub domain_types: Vec<String>,
    /// Whether the CPU element itself names `vmx` or `svm`.
    pub virtualization: bool,
    /// A CPU description for libvirt to expand, because a model may imply the features.
    pub cpu: Option<String>,
}

/// Reads what matters of libvirt's capabilities.
pub fn read(document: &str) -> Result<Read, Error> {
    let parsed: Capabilities = xml::read("capabilities", document)?;
    let domain_types = parsed
        .guests
        .iter()
        .filter(|guest| guest.os_type == "hvm" && guest.arch.name == "x86_64")
        .chain(parsed.guests.iter().filter(|guest| guest.os_type == "hvm"))
        .flat_map(|guest| guest.arch.domains.iter().map(|domain| domain.type_.clone()))
        .collect();
    let cpu = parsed.host.cpu;
    let virtualization = cpu.as_ref().is_some_and(|cpu| has_virtualization(&cpu.features));
    let cpu = cpu.and_then(|cpu| {
        let (arch, model) = (cpu.arch?, cpu.model?);
        let features = cpu.features.into_iter().map(|f| xml::element("feature").attr("name", f.name));
        Some(
            xml::element("cpu")
                .child(xml::text("arch", arch))
                .child(xml::text("model", model))
                .children(features)
                .document(),
        )
    });
    Ok(Read { domain_types, virtualization, cpu })
}

/// Whether an expanded CPU description names `vmx` or `svm`.
pub fn expanded_has_virtualization(document: &str) -> Result<bool, Error> {
    let cpu: Cpu = xml::read("CPU", document)?;
    Ok(has_virtualization(&cpu.features))
}

fn has_virtualization(features: &[Feature]) -> bool {
    features
        .iter()
        .any(|f| (f.name == "vmx" || f.name == "svm") && !matches!(f.policy.as_deref(), Some("disable" | "forbid")))
}

/// Picks the domain type.
pub fn choose(domain_types: &[String], virtualization: bool) -> Accelerator {
    let has = |name: &str| domain_types.iter().any(|t| t == name);
    if virtualization && has("kvm") {
        Accelerator::Kvm
    } else if has("qemu") {
        Accelerator::Tcg
    } else {
        domain_types.first().map_or(Accelerator::Tcg, |name| Accelerator::Other(name.clone()))
    }
}

/// `major.minor.release` of a libvirt version number.
pub fn version(number: u32) -> String {
    format!("{}.{}.{}", number / 1_000_000, number / 1_000 % 1_000, number % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "<capabilities><host><uuid>x</uuid><cpu><arch>x86_64</arch><model>EPYC</model>\
        <feature name='hypervisor'/></cpu></host>\
        <guest><os_type>hvm</os_type><arch name='i686'><wordsize>32</wordsize><domain type='qemu'/></arch></guest>\
        <guest><os_type>hvm</os_type><arch name='x86_64'><domain type='qemu'/><domain type='kvm'/></arch></guest>\
        </capabilities>";

    #[test]
    fn advertised_kvm_alone_is_not_enough() {
        let read = read(DOCUMENT).unwrap();
        assert_eq!(read.domain_types[..2], ["qemu", "kvm"]);
        assert!(!read.virtualization);
        assert_eq!(choose(&read.domain_types, false), Accelerator::Tcg);
        assert_eq!(choose(&read.domain_types, true), Accelerator::Kvm);
        assert_eq!(choose(&["test".to_owned()], false), Accelerator::Other("test".to_owned()));
    }

    #[test]
    fn a_model_may_imply_the_feature() {
        assert!(read(DOCUMENT).unwrap().cpu.unwrap().contains("EPYC"));
        assert!(expanded_has_virtualization("<cpu><feature policy='require' name='svm'/></cpu>").unwrap());
        assert!(!expanded_has_virtualization("<cpu><feature policy='disable' name='svm'/></cpu>").unwrap());
    }

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!(version(11_003_000), "11.3.0");
        assert_eq!(version(10_000_002), "10.0.2");
    }
}
