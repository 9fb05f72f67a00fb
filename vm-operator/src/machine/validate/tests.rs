use super::*;
use crate::appliance::validate::{tests::spec as appliance_spec, validate as validate_appliance};

pub(crate) fn spec() -> VirtualMachineSpec {
    serde_json::from_value(serde_json::json!({
        "id": Uuid::from_u128(77).to_string(), "appliance": "local", "vcpus": 1, "memoryMiB": 256,
        "image": "img", "rootDisk": { "pool": "default", "sizeGiB": 2 },
        "dataDisks": [{ "name": "a", "pool": "default", "sizeGiB": 1 }],
        "interfaces": [{ "network": "wan" }, { "network": "lan" }], "guestAgent": true
    }))
    .unwrap()
}

pub(crate) fn image() -> ImageVolumes {
    ImageVolumes { disk: Some(("pcg-img-d".into(), 1 << 30)), kernel: Some("pcg-img-k".into()), initrd: None }
}

pub(crate) fn check(spec: &VirtualMachineSpec) -> Result<ValidatedMachine, Invalid> {
    let appliance = validate_appliance(&appliance_spec()).unwrap();
    let host = HostStatus { cpus: 2, memory_mib: 1024, ..HostStatus::default() };
    let site = Site { appliance: &appliance, host: Some(&host), image: Some(image()), seed: None, config: None };
    validate("ns", "vm", spec, site)
}

#[test]
fn a_machine_that_fits() {
    let valid = check(&spec()).unwrap();
    assert_eq!(valid.domain, "optest-vm");
    assert_eq!(valid.console_log, "/logs/vm.log");
    assert_eq!(valid.definition.disks[0].base.as_deref(), Some("pcg-img-d"));
    assert_eq!(valid.definition.disks[1].role, "data-a");
    assert_eq!(valid.definition.interfaces[1].libvirt_network, "optest-lan");
}

#[test]
fn the_definition_digest_ignores_power_and_size() {
    let digest = |edit: fn(&mut VirtualMachineSpec)| {
        let mut spec = spec();
        edit(&mut spec);
        check(&spec).unwrap().definition.digest()
    };
    let plain = digest(|_| ());
    assert_eq!(plain, digest(|s| s.power_state = PowerState::Stopped));
    assert_eq!(plain, digest(|s| s.on_config_change = OnConfigChange::Restart));
    assert_eq!(plain, digest(|s| s.root_disk.as_mut().unwrap().size_gib = None));
    assert_eq!(plain, digest(|s| s.data_disks[0].size_gib = 9));
    assert_ne!(plain, digest(|s| s.vcpus = 2));
    assert_ne!(plain, digest(|s| s.cpu_set = Some("0".into())));
    assert_ne!(plain, digest(|s| s.interfaces.truncate(1)));
    assert_eq!(plain.len(), 64);
}

#[test]
fn a_cpu_set_names_cpus_of_the_host() {
    let with = |set: &str| {
        let mut spec = spec();
        spec.cpu_set = Some(set.into());
        check(&spec).map(|valid| valid.definition.cpu_set)
    };
    assert_eq!(with("0-1,0").unwrap().as_deref(), Some("0-1,0"));
    assert_eq!(with("0,1-9").unwrap_err().to_string(), "cpuSet \"0,1-9\" names CPU 2, the host has 0 to 1");
    assert_eq!(with("7").unwrap_err().to_string(), "cpuSet \"7\" names CPU 7, the host has 0 to 1");
}

#[test]
fn each_reason() {
    type Edit = fn(&mut VirtualMachineSpec);
    let cases: [(&str, Edit); 13] = [
        ("CpuNotFound", |s| s.cpu_set = Some("0,1-2".into())),
        ("Invalid", |s| s.cpu_set = Some("1-0".into())),
        ("Invalid", |s| s.cpu_set = Some("0,".into())),
        ("PoolNotFound", |s| s.root_disk.as_mut().unwrap().pool = "x".into()),
        ("PoolNotFound", |s| s.data_disks[0].pool = "x".into()),
        ("NetworkNotFound", |s| s.interfaces[0].network = "x".into()),
        ("InsufficientMemory", |s| s.memory_mib = 2048),
        ("InsufficientCpus", |s| s.vcpus = 3),
        ("Invalid", |s| s.id = "x".into()),
        ("Invalid", |s| s.data_disks.push(s.data_disks[0].clone())),
        ("Invalid", |s| s.interfaces[0].mac = Some("01:00:00:00:00:01".into())),
        ("Invalid", |s| s.kernel_args = Some("a\nb".into())),
        ("Invalid", |s| s.kernel_args = Some("a\u{fffe}b".into())),
    ];
    for (reason, edit) in cases {
        let mut spec = spec();
        edit(&mut spec);
        assert_eq!(check(&spec).unwrap_err().reason(), reason);
    }
}
