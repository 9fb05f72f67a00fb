//! The only way to a hypervisor (D5): a narrow, blocking port and its real adapter.
//!
//! [`Hypervisor`] is what the controllers need of libvirt and no more. [`connection::Host`] runs its calls on tokio's
//! blocking threads, because every libvirt call may block. Events come back through [`events`], the one module with
//! `unsafe` code. XML is built and read in [`xml`], [`networks`], [`volumes`] and [`domains`], which do no I/O.

pub mod adapter;
pub mod agent;
pub mod capabilities;
pub mod connection;
pub mod domains;
pub mod events;
pub mod networks;
pub mod volumes;
pub mod xml;

use std::io::{Read, Write};

use uuid::Uuid;
use virt::error::ErrorNumber;

/// A call to libvirt that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no connection now; one is being made.
    #[error("libvirt at {uri} is not connected: {reason}")]
    NotConnected {
        /// Connection URI.
        uri: String,
        /// Why the last attempt failed.
        reason: String,
    },
    /// libvirt refused.
    #[error("cannot {what}: {}", .refusal.message())]
    Call {
        /// What was to be done, for instance `start domain edge-router`.
        what: String,
        /// libvirt's error. Not a `source`: its Display adds codes for programs to the text that is shown already.
        refusal: virt::error::Error,
    },
    /// XML that libvirt gave could not be understood.
    #[error("cannot read XML of {what}: {reason}")]
    Xml {
        /// Which object.
        what: String,
        /// What the parser said.
        reason: String,
    },
    /// The data that was to be uploaded could not be read, or downloaded data could not be written.
    #[error("cannot copy data of volume {volume}")]
    Data {
        /// Volume name.
        volume: String,
        /// The reader's or writer's error.
        source: std::io::Error,
    },
    /// The data ended too early or too late.
    #[error("volume {volume}: {got} bytes came, {expected} were expected")]
    Length {
        /// Volume name.
        volume: String,
        /// Bytes seen.
        got: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// The guest agent said something that is not understood.
    #[error("guest agent: cannot {what}: {reason}")]
    Agent {
        /// What was to be done.
        what: String,
        /// What was wrong.
        reason: String,
    },
    /// A blocking thread ended without an answer.
    #[error("the libvirt call was cut off")]
    Interrupted,
}

impl Error {
    /// True where libvirt says that the object does not exist: for removal that is done (law 1).
    pub fn is_not_found(&self) -> bool {
        let Self::Call { refusal, .. } = self else { return false };
        [ErrorNumber::NoDomain, ErrorNumber::NoNetwork, ErrorNumber::NoStoragePool, ErrorNumber::NoStorageVolume]
            .iter()
            .any(|number| refusal.code() == (*number).into())
    }

    /// True where a file system is full. libvirt has no number of its own for that; its text, and that of the programs it
    /// runs, is the operating system's.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Call { refusal, .. } if refusal.message().contains("No space left on device"))
    }

    /// True where the guest agent does not answer.
    pub fn is_agent(&self) -> bool {
        matches!(self, Self::Call { refusal, .. } if refusal.code() == ErrorNumber::AgentUnresponsive.into())
    }
}

/// What the hypervisor offers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostFacts {
    /// Logical CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Domain type to use.
    pub accelerator: capabilities::Accelerator,
    /// libvirt's version.
    pub libvirt_version: String,
    /// QEMU's version.
    pub hypervisor_version: String,
}

/// A network as libvirt has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NetworkFacts {
    /// Name.
    pub name: String,
    /// UUID; ours is derived, which makes it our mark.
    pub uuid: Uuid,
    /// Whether it is started.
    pub active: bool,
    /// Whether it starts with the host.
    pub autostart: bool,
    /// Interfaces attached now.
    pub connections: u32,
    /// Its shape.
    pub shape: networks::Shape,
    /// What its DHCP keeps for somebody.
    pub reservations: Vec<networks::Reservation>,
}

/// A storage pool as libvirt has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PoolFacts {
    /// Name.
    pub name: String,
    /// UUID; ours is derived, which makes it our mark.
    pub uuid: Uuid,
    /// Whether it is started.
    pub active: bool,
    /// Whether it starts with the host.
    pub autostart: bool,
    /// Pool type, `dir` for ours.
    pub kind: String,
    /// Directory.
    pub path: String,
    /// Bytes of the file system.
    pub capacity: u64,
    /// Bytes of it that are free.
    pub available: u64,
}

/// A volume as libvirt has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VolumeFacts {
    /// Name.
    pub name: String,
    /// Path on the host.
    pub path: String,
    /// Bytes that a guest sees.
    pub capacity: u64,
    /// Path of the volume below this overlay.
    pub backing: Option<String>,
}

/// A domain as libvirt has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DomainFacts {
    /// UUID.
    pub uuid: Uuid,
    /// Name.
    pub name: String,
    /// State.
    pub state: DomainState,
    /// Whether a definition is kept.
    pub persistent: bool,
    /// Whether it starts with the host.
    pub autostart: bool,
    /// What the next start will use.
    pub config: domains::Description,
    /// What runs now; there only while it is active.
    pub live: Option<domains::Description>,
}

/// State of a domain, as far as the plan must tell states apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DomainState {
    /// vCPUs run, or wait for something.
    Running,
    /// Paused by somebody.
    Paused,
    /// Paused by QEMU at a write for which there was no space.
    NoSpace,
    /// On its way down.
    ShuttingDown,
    /// Off.
    Off,
    /// Crashed, and kept for inspection.
    Crashed,
    /// Suspended by the guest.
    Suspended,
}

impl DomainState {
    /// Whether QEMU runs.
    pub fn is_active(self) -> bool {
        !matches!(self, Self::Off)
    }
}

/// Where guest addresses are asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AddressSource {
    /// qemu-guest-agent.
    Agent,
    /// Leases of libvirt's own DHCP.
    Lease,
}

/// An address of a guest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FoundAddress {
    /// MAC address of the interface, lower case.
    pub mac: String,
    /// The address.
    pub ip: String,
    /// Prefix length.
    pub prefix: u32,
}

/// What the controllers need of a hypervisor. Every call may block. Removing what does not exist succeeds.
pub trait Hypervisor: Send + Sync {
    /// Capacity and versions.
    fn host(&self) -> Result<HostFacts, Error>;

    /// A network by name.
    fn network(&self, name: &str) -> Result<Option<NetworkFacts>, Error>;
    /// All networks.
    fn networks(&self) -> Result<Vec<NetworkFacts>, Error>;
    /// Defines a network, or replaces its definition.
    fn define_network(&self, xml: &str) -> Result<(), Error>;
    /// Starts a network.
    fn start_network(&self, name: &str) -> Result<(), Error>;
    /// Stops a network.
    fn stop_network(&self, name: &str) -> Result<(), Error>;
    /// Makes a network start with the host.
    fn autostart_network(&self, name: &str) -> Result<(), Error>;
    /// Removes the definition of a network.
    fn undefine_network(&self, name: &str) -> Result<(), Error>;
    /// Keeps an address of a network's DHCP for one interface, from now on.
    fn reserve_address(&self, network: &str, reservation: &networks::Reservation) -> Result<(), Error>;
    /// Gives it up again.
    fn release_address(&self, network: &str, reservation: &networks::Reservation) -> Result<(), Error>;

    /// All pools.
    fn pools(&self) -> Result<Vec<PoolFacts>, Error>;
    /// Defines a pool.
    fn define_pool(&self, xml: &str) -> Result<(), Error>;
    /// Makes the pool's directory where it is missing, and starts it.
    fn start_pool(&self, name: &str) -> Result<(), Error>;
    /// Makes a pool start with the host.
    fn autostart_pool(&self, name: &str) -> Result<(), Error>;
    /// Stops a pool and removes its definition; its directory and files stay.
    fn remove_pool(&self, name: &str) -> Result<(), Error>;
    /// Reads the directory of a pool again.
    fn refresh_pool(&self, name: &str) -> Result<(), Error>;

    /// A volume by name, looked up without reading the directory again.
    fn volume(&self, pool: &str, name: &str) -> Result<Option<VolumeFacts>, Error>;
    /// All volumes of a pool.
    fn volumes(&self, pool: &str) -> Result<Vec<VolumeFacts>, Error>;
    /// Makes a volume.
    fn create_volume(&self, pool: &str, xml: &str) -> Result<(), Error>;
    /// Makes a volume larger that no running domain has open. Never smaller.
    fn grow_volume(&self, pool: &str, name: &str, size: u64) -> Result<(), Error>;
    /// Deletes a volume and its data.
    fn delete_volume(&self, pool: &str, name: &str) -> Result<(), Error>;
    /// Fills a volume with exactly `length` bytes.
    fn upload(&self, pool: &str, name: &str, length: u64, data: &mut dyn Read) -> Result<(), Error>;
    /// Reads the first `length` bytes of a volume.
    fn download(&self, pool: &str, name: &str, length: u64, out: &mut dyn Write) -> Result<(), Error>;

    /// A domain by UUID.
    fn domain(&self, uuid: Uuid) -> Result<Option<DomainFacts>, Error>;
    /// UUID of the domain with this name.
    fn domain_named(&self, name: &str) -> Result<Option<Uuid>, Error>;
    /// Description of every domain.
    fn descriptions(&self) -> Result<Vec<domains::Description>, Error>;
    /// Defines a domain, or replaces its definition.
    fn define_domain(&self, xml: &str) -> Result<(), Error>;
    /// Whether a domain starts with the host.
    fn autostart_domain(&self, uuid: Uuid, autostart: bool) -> Result<(), Error>;
    /// Starts a domain.
    fn start_domain(&self, uuid: Uuid) -> Result<(), Error>;
    /// Lets a paused domain go on.
    fn resume_domain(&self, uuid: Uuid) -> Result<(), Error>;
    /// Asks the guest to shut down.
    fn shutdown_domain(&self, uuid: Uuid) -> Result<(), Error>;
    /// Cuts the power.
    fn destroy_domain(&self, uuid: Uuid) -> Result<(), Error>;
    /// Makes a volume larger that is a disk of a running domain, whose guest is told. Never smaller.
    fn grow_disk(&self, uuid: Uuid, pool: &str, name: &str, size: u64) -> Result<(), Error>;
    /// Removes the definition of a domain with its NVRAM and saved state.
    fn undefine_domain(&self, uuid: Uuid) -> Result<(), Error>;
    /// The last `limit` bytes of a file in the guest, by its agent; `None` where there is no such file.
    fn guest_file(&self, uuid: Uuid, path: &str, limit: u32) -> Result<Option<Vec<u8>>, Error>;
    /// Addresses of a guest.
    fn addresses(&self, uuid: Uuid, source: AddressSource) -> Result<Vec<FoundAddress>, Error>;
}
