//! Domain XML: what is wanted, and the parts that are read back.
//!
//! <https://libvirt.org/formatdomain.html>

use edge_api::names::METADATA_NS;
use serde::Deserialize;
use uuid::Uuid;

use super::Error;
use super::capabilities::Accelerator;
use super::xml::{self, Element, element, text};

/// A domain that is wanted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Domain {
    /// UUID.
    pub uuid: Uuid,
    /// Name.
    pub name: String,
    /// Sentence for people who look with `virsh`.
    pub title: String,
    /// Our mark.
    pub marks: Marks,
    /// How it is executed.
    pub accelerator: Accelerator,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Host CPUs that they may use; all where absent.
    pub cpu_set: Option<String>,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Direct kernel boot; otherwise the first disk's own loader.
    pub kernel: Option<Kernel>,
    /// Disks in the guest's order.
    pub disks: Vec<Disk>,
    /// Interfaces in the guest's order.
    pub interfaces: Vec<Interface>,
    /// File on the host for the serial console.
    pub console_log: String,
    /// Whether a channel for qemu-guest-agent is attached.
    pub guest_agent: bool,
}

/// Direct kernel boot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kernel {
    /// Path of the kernel.
    pub kernel: String,
    /// Path of the initial RAM disk.
    pub initrd: Option<String>,
    /// Kernel command line.
    pub args: Option<String>,
}

/// A disk.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Disk {
    /// Path on the host.
    pub path: String,
    /// Format and use.
    pub kind: DiskKind,
    /// Serial number in the guest.
    pub serial: String,
}

/// What a disk is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DiskKind {
    /// qcow2, written by the guest.
    Data,
    /// Raw, read by the guest only.
    ReadOnly,
}

/// A network interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Interface {
    /// MAC address.
    pub mac: String,
    /// Name of the libvirt network.
    pub network: String,
}

/// Our element in the metadata of a domain (D10).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub struct Marks {
    /// Identity of the machine.
    #[serde(rename = "@id")]
    pub id: String,
    /// Identity of the appliance.
    #[serde(default, rename = "@appliance")]
    pub appliance: String,
    /// Namespace and name of the object.
    #[serde(default, rename = "@object")]
    pub object: String,
    /// Digest of the definition.
    #[serde(default, rename = "@definition")]
    pub definition: String,
    /// Digest over the content of seed and configuration disk; absent while they are being written.
    #[serde(default, rename = "@config")]
    pub config: Option<String>,
    /// Disks that were made, separated by spaces: one that is missing was lost.
    #[serde(default, rename = "@disks")]
    pub disks: String,
}

impl Marks {
    fn element(&self) -> Element {
        let Self { id, appliance, object, definition, config, disks } = self;
        element("pcg:machine")
            .attr("xmlns:pcg", METADATA_NS)
            .attr("id", id)
            .attr("appliance", appliance)
            .attr("object", object)
            .attr("definition", definition)
            .attr_opt("config", config.as_deref())
            .attr("disks", disks)
    }
}

impl Domain {
    /// XML to define it with.
    pub fn xml(&self) -> String {
        let Self {
            uuid,
            name,
            title,
            marks,
            accelerator,
            vcpus,
            cpu_set,
            memory_mib,
            kernel,
            disks,
            interfaces,
            console_log,
            guest_agent,
        } = self;
        let cpu = match accelerator {
            Accelerator::Kvm => Some(cpu("host-passthrough")),
            Accelerator::Tcg => Some(cpu("maximum").children(SLOW_FEATURES.map(without))),
            Accelerator::Other(_) => None,
        };
        let command_line = |args: &Option<String>| match (accelerator, args) {
            (Accelerator::Tcg, None) => Some(EMULATED.to_owned()),
            (Accelerator::Tcg, Some(args)) => Some(format!("{EMULATED} {args}")),
            (_, args) => args.clone(),
        };
        let os_type = text("type", "hvm").attr("arch", "x86_64").attr("machine", "q35");
        let os = match kernel {
            Some(Kernel { kernel, initrd, args }) => element("os")
                .child(os_type)
                .child(text("kernel", kernel))
                .children(initrd.iter().map(|path| text("initrd", path)))
                .children(command_line(args).map(|args| text("cmdline", args))),
            None => element("os").child(os_type).child(element("boot").attr("dev", "hd")),
        };
        element("domain")
            .attr("type", accelerator.domain_type())
            .child(text("name", name))
            .child(text("uuid", uuid.to_string()))
            .child(text("title", title))
            .child(element("metadata").child(marks.element()))
            .child(text("memory", memory_mib.to_string()).attr("unit", "MiB"))
            .child(text("vcpu", vcpus.to_string()).attr("placement", "static").attr_opt("cpuset", cpu_set.as_deref()))
            .child(os)
            .child(element("features").child(element("acpi")).child(element("apic")))
            .children(cpu)
            .child(element("clock").attr("offset", "utc"))
            .child(text("on_poweroff", "destroy"))
            .child(text("on_reboot", "restart"))
            .child(text("on_crash", "restart"))
            .child(devices(disks, interfaces, console_log, *guest_agent))
            .document()
    }
}

fn cpu(mode: &str) -> Element {
    element("cpu").attr("mode", mode).attr("check", "none")
}

fn without(feature: &str) -> Element {
    element("feature").attr("policy", "disable").attr("name", feature)
}

fn devices(disks: &[Disk], interfaces: &[Interface], console_log: &str, guest_agent: bool) -> Element {
    let channel = guest_agent.then(|| {
        element("channel")
            .attr("type", "unix")
            .child(element("target").attr("type", "virtio").attr("name", AGENT_CHANNEL))
    });
    // virtlogd writes the file and caps its size.
    let serial = element("serial")
        .attr("type", "pty")
        .child(element("log").attr("file", console_log).attr("append", "on"))
        .child(element("target").attr("port", "0"));
    let rng = element("rng").attr("model", "virtio").child(text("backend", "/dev/urandom").attr("model", "random"));
    element("devices")
        .children(disks.iter().enumerate().map(|(index, disk)| disk_element(index, disk)))
        // No USB: idle emulation of its controller costs CPU, and nothing uses it.
        .child(element("controller").attr("type", "usb").attr("model", "none"))
        .children(interfaces.iter().map(|interface| {
            let Interface { mac, network } = interface;
            element("interface")
                .attr("type", "network")
                .child(element("mac").attr("address", mac))
                .child(element("source").attr("network", network))
                .child(element("model").attr("type", "virtio"))
        }))
        .child(serial)
        .children(channel)
        .child(element("memballoon").attr("model", "virtio"))
        .child(rng)
}

/// For the kernel of an emulated guest, before its own arguments. Its time stamp counter is the host's and the same for
/// all its CPUs, but Linux takes those of several sockets for unsynchronized and asks an emulated HPET instead: each
/// look at the clock is then a system call and an exit to QEMU, and a program in Go looks all the time. Nor does an
/// emulated CPU run ahead of its program, which Linux would have to guard against.
const EMULATED: &str = "tsc=reliable mitigations=off";

/// What an emulated CPU can do and had better not: `rep movsb` and `rep stosb`, which Linux then prefers, go byte by
/// byte, and a fifth level of page tables is one more look for every page.
const SLOW_FEATURES: [&str; 3] = ["erms", "fsrm", "la57"];

const AGENT_CHANNEL: &str = "org.qemu.guest_agent.0";

fn disk_element(index: usize, disk: &Disk) -> Element {
    let Disk { path, kind, serial } = disk;
    let driver = element("driver").attr("name", "qemu");
    let driver = match kind {
        // A write that finds no space pauses the guest, and nothing else does: any other error is the guest's to hear of.
        DiskKind::Data => driver.attr("type", "qcow2").attr("error_policy", "enospace").attr("discard", "unmap"),
        DiskKind::ReadOnly => driver.attr("type", "raw"),
    };
    element("disk")
        .attr("type", "file")
        .attr("device", "disk")
        .child(driver)
        .child(element("source").attr("file", path))
        .child(element("target").attr("dev", device_name(index)).attr("bus", "virtio"))
        .children(matches!(kind, DiskKind::ReadOnly).then(|| element("readonly")))
        .child(text("serial", serial))
}

/// `vda`, `vdb`, …, `vdz`, `vdaa`, …
fn device_name(index: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = index + 1;
    while rest > 0 {
        letters.push(char::from(b'a' + ((rest - 1) % 26) as u8));
        rest = (rest - 1) / 26;
    }
    letters.push('d');
    letters.push('v');
    letters.iter().rev().collect()
}

/// What is read of a domain.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Description {
    /// Name.
    pub name: String,
    /// Our mark, where the domain is ours.
    pub marks: Option<Marks>,
    /// Whether the guest agent has connected; `None` without a channel for it.
    pub agent_connected: Option<bool>,
    /// Paths of kernel, initial RAM disk and disks, without those below overlays.
    pub files: Vec<String>,
}

#[derive(Deserialize)]
struct Document {
    name: String,
    metadata: Option<Metadata>,
    os: Option<Os>,
    devices: Option<Devices>,
}

#[derive(Deserialize)]
struct Metadata {
    machine: Option<MarkElement>,
}

#[derive(Deserialize)]
struct MarkElement {
    #[serde(rename = "@xmlns:pcg")]
    namespace: Option<String>,
    #[serde(flatten)]
    marks: Marks,
}

#[derive(Deserialize)]
struct Os {
    kernel: Option<String>,
    initrd: Option<String>,
}

#[derive(Deserialize)]
struct Devices {
    #[serde(default, rename = "disk")]
    disks: Vec<DiskDocument>,
    #[serde(default, rename = "channel")]
    channels: Vec<Channel>,
}

#[derive(Deserialize)]
struct DiskDocument {
    source: Option<DiskSource>,
}

#[derive(Deserialize)]
struct DiskSource {
    #[serde(rename = "@file")]
    file: Option<String>,
}

#[derive(Deserialize)]
struct Channel {
    target: Option<ChannelTarget>,
}

#[derive(Deserialize)]
struct ChannelTarget {
    #[serde(rename = "@name")]
    name: Option<String>,
    #[serde(rename = "@state")]
    state: Option<String>,
}

/// Reads a domain.
pub fn read(document: &str) -> Result<Description, Error> {
    let Document { name, metadata, os, devices } = xml::read("domain", document)?;
    let marks =
        metadata.and_then(|m| m.machine).filter(|m| m.namespace.as_deref() == Some(METADATA_NS)).map(|m| m.marks);
    let devices = devices.unwrap_or(Devices { disks: Vec::new(), channels: Vec::new() });
    let agent_connected = devices
        .channels
        .iter()
        .filter_map(|c| c.target.as_ref())
        .find(|t| t.name.as_deref() == Some(AGENT_CHANNEL))
        .map(|t| t.state.as_deref() == Some("connected"));
    let mut files: Vec<String> = devices.disks.into_iter().filter_map(|d| d.source).filter_map(|s| s.file).collect();
    files.extend(os.into_iter().flat_map(|os| [os.kernel, os.initrd]).flatten());
    Ok(Description { name, marks, agent_connected, files })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    pub(crate) fn example(accelerator: Accelerator) -> Domain {
        Domain {
            uuid: Uuid::from_u128(7),
            name: "t-router".into(),
            title: "PCG-Edge <router> & \"more\"".into(),
            marks: Marks {
                id: Uuid::from_u128(7).to_string(),
                appliance: Uuid::nil().to_string(),
                object: "ns/router".into(),
                definition: "d".into(),
                config: Some("c".into()),
                disks: "root data-a".into(),
            },
            accelerator,
            vcpus: 2,
            cpu_set: Some("0-1,3".into()),
            memory_mib: 512,
            kernel: Some(Kernel {
                kernel: "/p/k".into(),
                initrd: Some("/p/i".into()),
                args: Some("console=ttyS0 a=\"<b>\"".into()),
            }),
            disks: vec![
                Disk { path: "/p/root".into(), kind: DiskKind::Data, serial: "root".into() },
                Disk { path: "/p/config".into(), kind: DiskKind::ReadOnly, serial: "config".into() },
            ],
            interfaces: vec![Interface { mac: "52:00:00:00:00:01".into(), network: "t-wan".into() }],
            console_log: "/var/log/t.log".into(),
            guest_agent: true,
        }
    }

    #[test]
    fn libvirts_schema_accepts_it() {
        for (accelerator, kernel) in [(Accelerator::Kvm, true), (Accelerator::Tcg, false)] {
            let mut domain = example(accelerator);
            if !kernel {
                domain.kernel = None;
            }
            let mut child = Command::new("virt-xml-validate")
                .args(["-", "domain"])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("virt-xml-validate of libvirt-clients runs");
            child.stdin.take().unwrap().write_all(domain.xml().as_bytes()).unwrap();
            let out = child.wait_with_output().unwrap();
            assert!(out.status.success(), "{}\n{}", domain.xml(), String::from_utf8_lossy(&out.stderr));
        }
    }

    #[test]
    fn marks_are_read_back() {
        let domain = example(Accelerator::Tcg);
        let read = read(&domain.xml()).unwrap();
        assert_eq!(read.marks.unwrap(), domain.marks);
        assert_eq!(read.agent_connected, Some(false));
        assert_eq!(read.files, ["/p/root", "/p/config", "/p/k", "/p/i"]);
        let mut unwritten = domain;
        unwritten.marks.config = None;
        assert_eq!(super::read(&unwritten.xml()).unwrap().marks.unwrap().config, None);
    }

    #[test]
    fn a_foreign_domain_has_no_mark() {
        let xml = "<domain type='kvm'><name>x</name><metadata><other xmlns='o' id='1'/></metadata></domain>";
        assert_eq!(read(xml).unwrap().marks, None);
        assert_eq!(read("<domain type='kvm'><name>x</name></domain>").unwrap().marks, None);
    }

    #[test]
    fn device_names_go_on_after_z() {
        assert_eq!([0, 1, 25, 26, 27].map(device_name), ["vda", "vdb", "vdz", "vdaa", "vdab"]);
    }
}
