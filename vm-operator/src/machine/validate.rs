//! From a machine's specification, its appliance and its image to one that can be planned with.

use std::collections::BTreeSet;

use edge_api::appliance::HostStatus;
use edge_api::virtual_machine::{
    ConfigDisk, DataDisk, Interface, OnConfigChange, PowerState, RootDisk, VirtualMachineSpec,
};
use edge_api::virtual_machine_image::{ImageVolume, VolumeRole};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::configdisk::ConfigImage;
use crate::appliance::validate::ValidatedAppliance;
use crate::identity;
use crate::libvirt::xml;

/// A machine that can be made on its appliance.
#[derive(Clone, Debug)]
pub struct ValidatedMachine {
    /// Identity.
    pub id: Uuid,
    /// Identity of the appliance.
    pub appliance: Uuid,
    /// Namespace and name of the object.
    pub object: String,
    /// Name of the domain.
    pub domain: String,
    /// File for the serial console.
    pub console_log: String,
    /// Whether it should run.
    pub power: PowerState,
    /// What to do about changes of running machines.
    pub on_change: OnConfigChange,
    /// What the guest sees.
    pub definition: Definition,
    /// Volume names of kernel, initial RAM disk and disk in the image pool.
    pub image: Option<ImageVolumes>,
    /// libvirt name of the image pool.
    pub image_pool: String,
    /// All pools of the appliance, by libvirt name.
    pub pools: Vec<String>,
    /// Pool for seed and configuration disk.
    pub config_pool: String,
    /// NoCloud seed.
    pub seed: Option<ConfigImage>,
    /// Configuration disk.
    pub config: Option<ConfigImage>,
}

/// What the guest sees; a change of it needs a restart. Its digest is kept in the domain's metadata, so fields that
/// are added later must not be serialized at their defaults.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Definition {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Host CPUs that they may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_set: Option<String>,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Kernel command line.
    pub kernel_args: Option<String>,
    /// Volumes of the image: names hold digests.
    pub kernel: Option<String>,
    /// As above.
    pub initrd: Option<String>,
    /// Root disk first, then the data disks.
    pub disks: Vec<Disk>,
    /// Interfaces.
    pub interfaces: Vec<Nic>,
    /// Whether a NoCloud seed is attached.
    pub seed: bool,
    /// Whether a configuration disk is attached.
    pub config: bool,
    /// Whether a channel for the guest agent is attached.
    pub guest_agent: bool,
}

impl Definition {
    /// `<hex>` of SHA-256 over the definition.
    pub fn digest(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        crate::image::registry::hex(&Sha256::digest(json)).trim_start_matches("sha256:").to_owned()
    }
}

/// A disk that the guest writes.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Disk {
    /// `root` or `data-<name>`.
    pub role: String,
    /// Serial number in the guest.
    pub serial: String,
    /// libvirt name of the pool.
    pub pool: String,
    /// Bytes when it is made. It is no part of the definition: a disk grows without a restart.
    #[serde(skip)]
    pub size: u64,
    /// Whether the specification says that size: an existing disk follows it. Without, it keeps the one it has.
    #[serde(skip)]
    pub sized: bool,
    /// Volume of the image that it is an overlay over.
    pub base: Option<String>,
}

/// An interface.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Nic {
    /// Network of the appliance, as in the specification.
    pub network: String,
    /// Its name in libvirt.
    pub libvirt_network: String,
    /// MAC address.
    pub mac: String,
}

/// Volume names of an image.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ImageVolumes {
    /// Disk and its virtual size.
    pub disk: Option<(String, u64)>,
    /// Kernel.
    pub kernel: Option<String>,
    /// Initial RAM disk.
    pub initrd: Option<String>,
}

impl ImageVolumes {
    /// Sorts an image's volumes by role.
    pub fn new(volumes: &[ImageVolume]) -> Self {
        let mut sorted = Self::default();
        for volume in volumes {
            let name = volume.name.clone();
            match volume.role {
                VolumeRole::Disk => sorted.disk = Some((name, volume.virtual_size.unwrap_or(0))),
                VolumeRole::Kernel => sorted.kernel = Some(name),
                VolumeRole::Initrd => sorted.initrd = Some(name),
            }
        }
        sorted
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.disk.iter().map(|(name, _)| name.as_str()).chain(self.kernel.as_deref()).chain(self.initrd.as_deref())
    }
}

/// Why a machine cannot be made.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Invalid {
    /// Not a UUID.
    #[error("spec.id {0:?} is no UUID")]
    Id(String),
    /// No such pool.
    #[error("{what} names storage pool {pool}, which the appliance does not have; it has {}", list(.known))]
    PoolNotFound {
        /// Which disk.
        what: String,
        /// The name.
        pool: String,
        /// Names there are.
        known: Vec<String>,
    },
    /// No such network.
    #[error("interface {position} names network {network}, which the appliance does not have; it has {}", list(.known))]
    NetworkNotFound {
        /// From 0.
        position: usize,
        /// The name.
        network: String,
        /// Names there are.
        known: Vec<String>,
    },
    /// More than the host has.
    #[error("{asked} MiB of memory are asked for, the host has {has}")]
    InsufficientMemory {
        /// Asked for.
        asked: u64,
        /// There.
        has: u64,
    },
    /// More than the host has.
    #[error("{asked} virtual CPUs are asked for, the host has {has}")]
    InsufficientCpus {
        /// Asked for.
        asked: u32,
        /// There.
        has: u32,
    },
    /// A CPU that the host does not have.
    #[error("cpuSet {set:?} names CPU {cpu}, the host has 0 to {}", .has.saturating_sub(1))]
    CpuNotFound {
        /// Asked for.
        set: String,
        /// The first that is not there.
        cpu: u32,
        /// How many there are.
        has: u32,
    },
    /// No set of CPUs.
    #[error("cpuSet {0:?} is not of the form 0-3,6 with each range rising")]
    CpuSet(String),
    /// The overlay would cut the image off.
    #[error("rootDisk.sizeGiB is {asked}, the image needs {needs}")]
    DiskTooSmall {
        /// Asked for.
        asked: u64,
        /// Needed.
        needs: u64,
    },
    /// Two disks of one name.
    #[error("two data disks are named {0}")]
    DuplicateDisk(String),
    /// Two interfaces with one MAC address.
    #[error("two interfaces have the MAC address {0}")]
    DuplicateMac(String),
    /// A multicast MAC address, or one that libvirt keeps for itself.
    #[error("the MAC address {0} cannot be used: it is a multicast address or starts with fe")]
    Mac(String),
    /// A disk without a loader, and no root disk to hold changes.
    #[error("the image is a disk: the machine needs a rootDisk")]
    RootDiskMissing,
    /// Kernel arguments that XML cannot hold.
    #[error("kernelArgs has control characters, or others that XML cannot hold")]
    KernelArgs,
    /// Kernel arguments without a kernel.
    #[error("kernelArgs is for images with a kernel")]
    NoKernel,
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

impl Invalid {
    /// Reason for the condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::PoolNotFound { .. } => "PoolNotFound",
            Self::NetworkNotFound { .. } => "NetworkNotFound",
            Self::InsufficientMemory { .. } => "InsufficientMemory",
            Self::InsufficientCpus { .. } => "InsufficientCpus",
            Self::CpuNotFound { .. } => "CpuNotFound",
            Self::DiskTooSmall { .. } => "DiskTooSmall",
            Self::Id(_)
            | Self::CpuSet(_)
            | Self::DuplicateDisk(_)
            | Self::DuplicateMac(_)
            | Self::Mac(_)
            | Self::RootDiskMissing
            | Self::KernelArgs
            | Self::NoKernel => "Invalid",
        }
    }
}

impl ValidatedMachine {
    /// libvirt names of the pools that its disks grow in.
    pub fn disk_pools(&self) -> impl Iterator<Item = &str> {
        self.definition.disks.iter().map(|disk| disk.pool.as_str())
    }
}

/// What a machine is checked against.
#[derive(Clone, Debug)]
pub struct Site<'a> {
    /// Its appliance.
    pub appliance: &'a ValidatedAppliance,
    /// The host, where it is known already.
    pub host: Option<&'a HostStatus>,
    /// Its image.
    pub image: Option<ImageVolumes>,
    /// NoCloud seed.
    pub seed: Option<ConfigImage>,
    /// Configuration disk.
    pub config: Option<ConfigImage>,
}

/// Checks a specification.
pub fn validate(
    namespace: &str,
    name: &str,
    spec: &VirtualMachineSpec,
    site: Site<'_>,
) -> Result<ValidatedMachine, Invalid> {
    let VirtualMachineSpec {
        id,
        appliance: _,
        power_state,
        vcpus,
        cpu_set,
        memory_mib,
        image: _,
        kernel_args,
        root_disk,
        data_disks,
        interfaces,
        cloud_init_secret: _,
        config_disk: _,
        on_config_change,
        guest_agent,
    } = spec;
    let Site { appliance, host, image, seed, config } = site;
    let id = Uuid::try_parse(id).map_err(|_| Invalid::Id(id.clone()))?;
    if let Some(HostStatus { cpus, memory_mib: has, .. }) = host {
        if memory_mib > has {
            return Err(Invalid::InsufficientMemory { asked: *memory_mib, has: *has });
        }
        if vcpus > cpus {
            return Err(Invalid::InsufficientCpus { asked: *vcpus, has: *cpus });
        }
    }
    if let Some(set) = cpu_set {
        check_cpu_set(set, host.map(|host| host.cpus))?;
    }
    let volumes = image.clone().unwrap_or_default();
    check_kernel_args(kernel_args.as_deref(), volumes.kernel.is_some())?;
    if root_disk.is_none() && volumes.disk.is_some() && volumes.kernel.is_none() {
        return Err(Invalid::RootDiskMissing);
    }
    let mut disks = Vec::new();
    if let Some(root) = root_disk {
        disks.push(root_disk_of(root, appliance, &volumes)?);
    }
    let mut names = BTreeSet::new();
    for disk in data_disks {
        if !names.insert(&disk.name) {
            return Err(Invalid::DuplicateDisk(disk.name.clone()));
        }
        disks.push(data_disk_of(disk, appliance)?);
    }
    Ok(ValidatedMachine {
        id,
        appliance: appliance.id,
        object: format!("{namespace}/{name}"),
        domain: appliance.instance.libvirt_name(name),
        console_log: format!("{}/{name}.log", appliance.console_log_dir),
        power: *power_state,
        on_change: *on_config_change,
        config_pool: disks.first().map_or_else(|| appliance.image_pool.clone(), |d| d.pool.clone()),
        definition: Definition {
            vcpus: *vcpus,
            cpu_set: cpu_set.clone(),
            memory_mib: *memory_mib,
            kernel_args: kernel_args.clone(),
            kernel: volumes.kernel,
            initrd: volumes.initrd,
            disks,
            interfaces: interfaces_of(id, interfaces, appliance)?,
            seed: seed.is_some(),
            config: config.is_some(),
            guest_agent: *guest_agent,
        },
        image,
        image_pool: appliance.image_pool.clone(),
        pools: appliance.pools.iter().map(|p| p.libvirt_name.clone()).collect(),
        seed,
        config,
    })
}

/// Checks a set as `0-3,6`. `cpus` is how many the host has, where that is known.
pub fn check_cpu_set(set: &str, cpus: Option<u32>) -> Result<(), Invalid> {
    let malformed = || Invalid::CpuSet(set.to_owned());
    for part in set.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) =
            (first.parse().map_err(|_| malformed())?, last.parse().map_err(|_| malformed())?);
        if first > last {
            return Err(malformed());
        }
        if let Some(has) = cpus.filter(|has| last >= *has) {
            return Err(Invalid::CpuNotFound { set: set.to_owned(), cpu: first.max(has), has });
        }
    }
    Ok(())
}

fn check_kernel_args(args: Option<&str>, has_kernel: bool) -> Result<(), Invalid> {
    match args {
        Some(args) if !xml::is_line(args) => Err(Invalid::KernelArgs),
        Some(_) if !has_kernel => Err(Invalid::NoKernel),
        _ => Ok(()),
    }
}

fn find_pool(appliance: &ValidatedAppliance, what: impl FnOnce() -> String, name: &str) -> Result<String, Invalid> {
    appliance.pools.iter().find(|p| p.name == name).map(|p| p.libvirt_name.clone()).ok_or_else(|| {
        Invalid::PoolNotFound {
            what: what(),
            pool: name.to_owned(),
            known: appliance.pools.iter().map(|p| p.name.clone()).collect(),
        }
    })
}

fn root_disk_of(root: &RootDisk, appliance: &ValidatedAppliance, image: &ImageVolumes) -> Result<Disk, Invalid> {
    let RootDisk { pool, size_gib } = root;
    let pool = find_pool(appliance, || "rootDisk".to_owned(), pool)?;
    let needed = image.disk.as_ref().map_or(0, |(_, size)| *size);
    let size = size_gib.map_or(needed, |gib| gib << 30);
    if size < needed {
        let needs = needed.div_ceil(1 << 30);
        return Err(Invalid::DiskTooSmall { asked: size_gib.unwrap_or(0), needs });
    }
    // Without an image disk and without a size there is nothing to go by: the smallest that is of any use.
    let size = if size == 0 { 1 << 30 } else { size };
    let base = image.disk.as_ref().map(|(name, _)| name.clone());
    let sized = size_gib.is_some();
    Ok(Disk { role: "root".to_owned(), serial: "root".to_owned(), pool, size, sized, base })
}

fn data_disk_of(disk: &DataDisk, appliance: &ValidatedAppliance) -> Result<Disk, Invalid> {
    let DataDisk { name, pool, size_gib } = disk;
    let pool = find_pool(appliance, || format!("data disk {name}"), pool)?;
    let (role, serial, size) = (format!("data-{name}"), name.clone(), size_gib << 30);
    Ok(Disk { role, serial, pool, size, sized: true, base: None })
}

fn interfaces_of(id: Uuid, interfaces: &[Interface], appliance: &ValidatedAppliance) -> Result<Vec<Nic>, Invalid> {
    let mut macs = BTreeSet::new();
    let mut nics = Vec::new();
    for (position, Interface { network, mac }) in interfaces.iter().enumerate() {
        let libvirt_network = appliance.instance.libvirt_name(network);
        if !appliance.networks.iter().any(|n| n.name == libvirt_network) {
            let known = appliance
                .networks
                .iter()
                .filter_map(|n| n.name.strip_prefix(&appliance.instance.libvirt_name("")).map(ToOwned::to_owned))
                .collect();
            return Err(Invalid::NetworkNotFound { position, network: network.clone(), known });
        }
        let mac = mac.clone().unwrap_or_else(|| identity::mac(id, position));
        let first = mac.get(..2).and_then(|b| u8::from_str_radix(b, 16).ok()).unwrap_or(1);
        if first & 1 == 1 || first == 0xfe {
            return Err(Invalid::Mac(mac));
        }
        if !macs.insert(mac.clone()) {
            return Err(Invalid::DuplicateMac(mac));
        }
        nics.push(Nic { network: network.clone(), libvirt_network, mac });
    }
    Ok(nics)
}

/// Secrets that a machine reads.
pub fn secrets(spec: &VirtualMachineSpec) -> impl Iterator<Item = &str> {
    let config = spec.config_disk.as_ref().map(|ConfigDisk { secret_name, label: _ }| secret_name.as_str());
    spec.cloud_init_secret.as_deref().into_iter().chain(config)
}

#[cfg(test)]
pub(crate) mod tests;
