//! Domain XML: whatever a machine's specification and its appliance say is refused, or stands in the XML exactly as it
//! was said, in its place, and nothing else does.
//!
//! The measure is a twin of the domain whose texts are harmless: both documents must be the same but for these.

#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use edge_api::VirtualMachineSpec;
use edge_api::appliance::{ApplianceSpec, Network, NetworkType, Registry, StoragePool};
use edge_api::virtual_machine::{DataDisk, Interface, RootDisk};
use edge_fuzz::{Element, has_xml, xml};
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;
use vm_operator::appliance::validate::validate as validate_appliance;
use vm_operator::identity;
use vm_operator::libvirt::VolumeFacts;
use vm_operator::libvirt::capabilities::Accelerator;
use vm_operator::libvirt::domains::{self, Disk, Domain, Kernel, Marks};
use vm_operator::machine::observe::{Found, Observed};
use vm_operator::machine::plan;
use vm_operator::machine::validate::{ImageVolumes, Site, validate};

#[derive(Arbitrary, Debug)]
struct Input {
    namespace: String,
    name: String,
    vcpus: u32,
    memory: u64,
    cpu_set: Option<String>,
    kernel_args: Option<String>,
    kernel: bool,
    initrd: bool,
    root_disk: bool,
    data_disks: Vec<String>,
    /// Behind the first two digits.
    macs: Vec<String>,
    network: String,
    pool: String,
    pool_path: String,
    console_log_dir: String,
    accelerator: u8,
    guest_agent: bool,
}

fuzz_target!(|input: Input| {
    let Some(domain) = domain(input) else { return };
    let document = domain.xml();
    let found = xml(&document).unwrap_or_else(|e| panic!("not well-formed: {e}\n{document}"));
    let (twin, texts) = harmless(&domain);
    let mut expected = xml(&twin.xml()).unwrap();
    put_back(&mut expected, &texts);
    assert_eq!(found, expected);
    // Our own reader, which decides whether a domain is ours.
    let read = domains::read(&document).unwrap();
    assert_eq!(read.name, domain.name);
    assert_eq!(read.marks, Some(domain.marks));
    let kernel = domain.kernel.into_iter().flat_map(|k| [Some(k.kernel), k.initrd]).flatten();
    assert_eq!(read.files, domain.disks.into_iter().map(|d| d.path).chain(kernel).collect::<Vec<_>>());
});

/// The way from specifications to a domain, as the operator goes it.
fn domain(input: Input) -> Option<Domain> {
    let Input { pool, network, kernel_args, .. } = &input;
    // The patterns of the API server keep these out of all names; paths and the command line are checked by us.
    let names = [&input.namespace, &input.name, network, pool];
    if !names.into_iter().chain(&input.data_disks).chain(&input.macs).all(|name| has_xml(name)) {
        return None;
    }
    let appliance = validate_appliance(&ApplianceSpec {
        id: Uuid::from_u128(9).to_string(),
        instance: "fuzz".to_owned(),
        libvirt_uri: "qemu:///system".to_owned(),
        networks: vec![Network {
            name: network.clone(),
            type_: NetworkType::Isolated,
            address: None,
            dhcp: None,
            bridge: None,
        }],
        storage_pools: vec![StoragePool { name: pool.clone(), path: format!("/{}", input.pool_path) }],
        image_pool: pool.clone(),
        registry: Registry { host: "r:1".to_owned(), secret_name: "s".to_owned() },
        console_log_dir: format!("/{}", input.console_log_dir),
    })
    .ok()?;
    let data_disk = |name: &String| DataDisk { name: name.clone(), pool: pool.clone(), size_gib: 1 };
    let interface = |mac: &String| Interface { network: network.clone(), mac: Some(format!("52{mac}")) };
    let spec = VirtualMachineSpec {
        id: Uuid::from_u128(7).to_string(),
        appliance: "local".to_owned(),
        power_state: Default::default(),
        vcpus: input.vcpus,
        cpu_set: input.cpu_set.clone(),
        memory_mib: input.memory,
        image: Some("image".to_owned()),
        kernel_args: kernel_args.clone(),
        root_disk: input.root_disk.then(|| RootDisk { pool: pool.clone(), size_gib: None }),
        data_disks: input.data_disks.iter().map(data_disk).collect(),
        interfaces: input
            .macs
            .iter()
            .map(interface)
            .chain([Interface { network: network.clone(), mac: None }])
            .collect(),
        cloud_init_secret: None,
        config_disk: None,
        on_config_change: Default::default(),
        guest_agent: input.guest_agent,
    };
    let image = ImageVolumes {
        disk: None,
        kernel: input.kernel.then(|| "pcg-img-k".to_owned()),
        initrd: input.initrd.then(|| "pcg-img-i".to_owned()),
    };
    let site = Site { appliance: &appliance, host: None, image: Some(image), seed: None, config: None };
    let machine = validate(&input.namespace, &input.name, &spec, site).ok()?;
    let path = |name: &str| format!("{}/{name}", appliance.pools[0].path);
    let volume = |role: &String| {
        let name = identity::volume(machine.id, role);
        let volume = VolumeFacts { path: path(&name), name, capacity: 1, backing: None };
        (role.clone(), Found { pool: machine.image_pool.clone(), volume })
    };
    let observed = Observed {
        volumes: machine.definition.disks.iter().map(|disk| volume(&disk.role)).collect(),
        image: ["pcg-img-k", "pcg-img-i"].map(|name| (name.to_owned(), path(name))).into(),
        ..Observed::default()
    };
    let accelerator = match input.accelerator % 3 {
        0 => Accelerator::Kvm,
        1 => Accelerator::Tcg,
        _ => Accelerator::Other("test".to_owned()),
    };
    let made = observed.volumes.keys().cloned().collect();
    Some(plan::domain(&machine, &observed, &accelerator, Some("sha256:c".to_owned()), &made).unwrap())
}

/// The same domain with a word in place of each text, and the texts by word.
fn harmless(domain: &Domain) -> (Domain, BTreeMap<String, String>) {
    let mut texts = BTreeMap::new();
    let mut word = |text: &String| {
        let word = format!("word-{:04}", texts.len());
        texts.insert(word.clone(), text.clone());
        word
    };
    // No `..`: a new text must be replaced here.
    let Domain {
        uuid,
        name,
        title,
        marks: Marks { id, appliance, object, definition, config, disks: made },
        accelerator,
        vcpus,
        cpu_set,
        memory_mib,
        kernel,
        disks,
        interfaces,
        console_log,
        guest_agent,
    } = domain;
    let twin = Domain {
        uuid: *uuid,
        name: word(name),
        title: word(title),
        marks: Marks {
            id: word(id),
            appliance: word(appliance),
            object: word(object),
            definition: word(definition),
            config: config.as_ref().map(&mut word),
            disks: word(made),
        },
        accelerator: accelerator.clone(),
        vcpus: *vcpus,
        cpu_set: cpu_set.as_ref().map(&mut word),
        memory_mib: *memory_mib,
        kernel: kernel.as_ref().map(|Kernel { kernel, initrd, args }| Kernel {
            kernel: word(kernel),
            initrd: initrd.as_ref().map(&mut word),
            args: args.as_ref().map(&mut word),
        }),
        disks: disks
            .iter()
            .map(|Disk { path, kind, serial }| Disk { path: word(path), kind: *kind, serial: word(serial) })
            .collect(),
        interfaces: interfaces
            .iter()
            .map(|domains::Interface { mac, network }| domains::Interface { mac: word(mac), network: word(network) })
            .collect(),
        console_log: word(console_log),
        guest_agent: *guest_agent,
    };
    (twin, texts)
}

/// The texts in place of their words.
fn put_back(element: &mut Element, texts: &BTreeMap<String, String>) {
    let replace = |value: &mut String| {
        // The command line has words of ours before it.
        if let Some((before, word)) = value.rfind("word-").map(|at| value.split_at(at)) {
            *value = format!("{before}{}", texts[word]);
        }
    };
    element.attributes.iter_mut().for_each(|(_, value)| replace(value));
    replace(&mut element.text);
    element.children.iter_mut().for_each(|child| put_back(child, texts));
}
