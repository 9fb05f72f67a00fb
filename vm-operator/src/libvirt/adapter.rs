//! [`Hypervisor`] by libvirt's C library.

use std::io::{Read, Write};

use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::{Domain, DomainPausedReason, DomainState as State, DomainStateReason};
use virt::enumutil::Enum;
use virt::network::Network;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt::stream::Stream;
use virt::sys;

use super::networks::Reservation;
use super::{
    AddressSource, DomainFacts, DomainState, Error, FoundAddress, HostFacts, Hypervisor, NetworkFacts, PoolFacts,
    VolumeFacts, agent, capabilities, domains, events, networks, volumes,
};
use crate::effects::Effect;

/// Bytes per message to libvirtd; its limit for stream packets is 256 KiB.
const CHUNK: usize = 256 * 1024;
/// Seconds that a guest agent may take for an answer.
const AGENT_SECONDS: i32 = 10;

/// One libvirt connection.
pub struct Libvirt {
    connect: Connect,
    _subscription: events::Subscription,
}

/// Turns libvirt's error into ours, with what was to be done.
fn call<T>(result: Result<T, virt::error::Error>, what: impl FnOnce() -> String) -> Result<T, Error> {
    result.map_err(|refusal| Error::Call { what: what(), refusal })
}

/// A lookup whose failure may mean that there is nothing.
fn optional<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

impl Libvirt {
    /// Connects, and subscribes to events. The event loop must run already.
    pub fn open(uri: &str, sink: &events::Sink) -> Result<Self, Error> {
        let connect = call(Connect::open(Some(uri)), || format!("connect to libvirt at {uri}"))?;
        // A dead peer is noticed after 15 s. Local drivers have no peer and refuse.
        if let Err(error) = connect.set_keep_alive(5, 3) {
            tracing::debug!(%error, uri, "no keepalive");
        }
        let subscription = call(events::Subscription::new(&connect, sink), || format!("watch libvirt at {uri}"))?;
        Ok(Self { connect, _subscription: subscription })
    }

    /// Whether the connection still stands.
    pub fn is_alive(&self) -> bool {
        self.connect.is_alive().unwrap_or(false)
    }

    fn find_network(&self, name: &str) -> Result<Network, Error> {
        call(self.connect.lookup_network_by_name(name), || format!("find network {name}"))
    }

    fn find_pool(&self, name: &str) -> Result<StoragePool, Error> {
        call(self.connect.lookup_storage_pool_by_name(name), || format!("find storage pool {name}"))
    }

    fn find_volume(&self, pool: &str, name: &str) -> Result<StorageVol, Error> {
        let found = self.find_pool(pool)?;
        call(found.lookup_storage_vol_by_name(name), || format!("find volume {name} in pool {pool}"))
    }

    fn find_domain(&self, uuid: Uuid) -> Result<Domain, Error> {
        call(self.connect.lookup_domain_by_uuid(uuid), || format!("find domain {uuid}"))
    }

    fn network_facts(network: &Network) -> Result<NetworkFacts, Error> {
        let what = || "read a network".to_owned();
        let active = call(network.is_active(), what)?;
        let live = call(network.xml_desc(0), what)?;
        // Not every driver keeps the definition apart from what runs.
        let config = network.xml_desc(sys::VIR_NETWORK_XML_INACTIVE).unwrap_or_else(|_| live.clone());
        let persistent = call(network.is_persistent(), what)?;
        let autostart = persistent && call(network.autostart(), what)?;
        networks::read(&config, &live, active, autostart)
    }

    fn update_reservation(
        &self,
        effect: Effect,
        command: sys::virNetworkUpdateCommand,
        network: &str,
        reservation: &Reservation,
    ) -> Result<(), Error> {
        let found = self.find_network(network)?;
        let what = || format!("change who has {} on network {network}", reservation.address);
        let live = if call(found.is_active(), what)? { sys::VIR_NETWORK_UPDATE_AFFECT_LIVE } else { 0 };
        let flags = sys::VIR_NETWORK_UPDATE_AFFECT_CONFIG | live;
        // Of the only address block that has DHCP.
        let any = -1;
        effect.around(|| {
            call(found.update(command, sys::VIR_NETWORK_SECTION_IP_DHCP_HOST, any, &reservation.xml(), flags), what)
        })
    }
}

impl Hypervisor for Libvirt {
    fn host(&self) -> Result<HostFacts, Error> {
        let what = || "read the host's capabilities".to_owned();
        let node = call(self.connect.node_info(), what)?;
        let read = capabilities::read(&call(self.connect.capabilities(), what)?)?;
        let expanded = match &read.cpu {
            Some(cpu) if !read.virtualization => self
                .connect
                .baseline_cpu(&[cpu], sys::VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES)
                .ok()
                .map(|document| capabilities::expanded_has_virtualization(&document))
                .transpose()?
                .unwrap_or(false),
            _ => false,
        };
        // A driver may list KVM and yet not be able to say anything about such guests.
        let usable = self.connect.domain_capabilities(None, Some("x86_64"), None, Some("kvm"), 0).is_ok();
        let accelerator = capabilities::choose(&read.domain_types, (read.virtualization || expanded) && usable);
        Ok(HostFacts {
            cpus: node.cpus,
            memory_mib: node.memory / 1024,
            accelerator,
            libvirt_version: capabilities::version(call(self.connect.lib_version(), what)?),
            hypervisor_version: capabilities::version(call(self.connect.hyp_version(), what)?),
        })
    }

    fn network(&self, name: &str) -> Result<Option<NetworkFacts>, Error> {
        optional(self.find_network(name))?.map(|network| Self::network_facts(&network)).transpose()
    }

    fn networks(&self) -> Result<Vec<NetworkFacts>, Error> {
        let all = call(self.connect.list_all_networks(0), || "list networks".to_owned())?;
        let mut facts = Vec::new();
        for network in &all {
            facts.extend(optional(Self::network_facts(network))?);
        }
        Ok(facts)
    }

    fn define_network(&self, xml: &str) -> Result<(), Error> {
        Effect::DefineNetwork
            .around(|| call(self.connect.define_network_xml(xml), || "define a network".to_owned()).map(drop))
    }

    fn start_network(&self, name: &str) -> Result<(), Error> {
        let network = self.find_network(name)?;
        Effect::StartNetwork.around(|| call(network.create(), || format!("start network {name}")))
    }

    fn stop_network(&self, name: &str) -> Result<(), Error> {
        let Some(network) = optional(self.find_network(name))? else { return Ok(()) };
        Effect::StopNetwork.around(|| call(network.destroy(), || format!("stop network {name}")))
    }

    fn autostart_network(&self, name: &str) -> Result<(), Error> {
        let network = self.find_network(name)?;
        Effect::AutostartNetwork.around(|| call(network.set_autostart(true), || format!("autostart network {name}")))
    }

    fn undefine_network(&self, name: &str) -> Result<(), Error> {
        let Some(network) = optional(self.find_network(name))? else { return Ok(()) };
        Effect::UndefineNetwork.around(|| call(network.undefine(), || format!("undefine network {name}")))
    }

    fn reserve_address(&self, network: &str, reservation: &Reservation) -> Result<(), Error> {
        self.update_reservation(Effect::ReserveAddress, sys::VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, network, reservation)
    }

    fn release_address(&self, network: &str, reservation: &Reservation) -> Result<(), Error> {
        let command = sys::VIR_NETWORK_UPDATE_COMMAND_DELETE;
        optional(self.update_reservation(Effect::ReleaseAddress, command, network, reservation)).map(drop)
    }

    fn pools(&self) -> Result<Vec<PoolFacts>, Error> {
        let all = call(self.connect.list_all_storage_pools(0), || "list storage pools".to_owned())?;
        let mut facts = Vec::new();
        for pool in all {
            // A pool of somebody else's may vanish between the list and the look.
            facts.extend(optional(pool_facts(&pool))?);
        }
        Ok(facts)
    }

    fn define_pool(&self, xml: &str) -> Result<(), Error> {
        Effect::DefinePool.around(|| {
            call(self.connect.define_storage_pool_xml(xml, 0), || "define a storage pool".to_owned()).map(drop)
        })
    }

    fn start_pool(&self, name: &str) -> Result<(), Error> {
        let pool = self.find_pool(name)?;
        // Makes the directory; it is no error that it exists.
        Effect::BuildPool.around(|| call(pool.build(0), || format!("build storage pool {name}")))?;
        Effect::StartPool.around(|| call(pool.create(0), || format!("start storage pool {name}")))
    }

    fn autostart_pool(&self, name: &str) -> Result<(), Error> {
        let pool = self.find_pool(name)?;
        Effect::AutostartPool.around(|| call(pool.set_autostart(true), || format!("autostart storage pool {name}")))
    }

    fn remove_pool(&self, name: &str) -> Result<(), Error> {
        let Some(pool) = optional(self.find_pool(name))? else { return Ok(()) };
        if call(pool.is_active(), || format!("read storage pool {name}"))? {
            Effect::StopPool.around(|| call(pool.destroy(), || format!("stop storage pool {name}")))?;
        }
        Effect::UndefinePool.around(|| call(pool.undefine(), || format!("undefine storage pool {name}")))
    }

    fn refresh_pool(&self, name: &str) -> Result<(), Error> {
        call(self.find_pool(name)?.refresh(0), || format!("refresh storage pool {name}"))
    }

    fn volume(&self, pool: &str, name: &str) -> Result<Option<VolumeFacts>, Error> {
        let Some(volume) = optional(self.find_volume(pool, name))? else { return Ok(None) };
        let xml = call(volume.xml_desc(0), || format!("read volume {name} in pool {pool}"));
        optional(xml)?.map(|xml| volumes::read_volume(&xml)).transpose()
    }

    fn volumes(&self, pool: &str) -> Result<Vec<VolumeFacts>, Error> {
        let what = || format!("list volumes of pool {pool}");
        let all = call(self.find_pool(pool)?.list_all_volumes(0), what)?;
        let mut facts = Vec::new();
        for volume in all {
            // A volume may vanish between the list and the look; one that cannot be read is no reason to hide it.
            match call(volume.xml_desc(0), what) {
                Ok(xml) => facts.push(volumes::read_volume(&xml)?),
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    tracing::debug!(error = crate::errors::chain(&error), "volume");
                    let name = call(volume.name(), what)?;
                    let path = call(volume.path(), what)?;
                    facts.push(VolumeFacts { name, path, capacity: 0, backing: None });
                }
            }
        }
        Ok(facts)
    }

    fn create_volume(&self, pool: &str, xml: &str) -> Result<(), Error> {
        let found = self.find_pool(pool)?;
        let what = || format!("make a volume in pool {pool}");
        Effect::CreateVolume.around(|| call(StorageVol::create_xml(&found, xml, 0), what)).map(drop)
    }

    fn grow_volume(&self, pool: &str, name: &str, size: u64) -> Result<(), Error> {
        // Without its flag for that, the call refuses to make anything smaller.
        let volume = self.find_volume(pool, name)?;
        let what = || format!("grow volume {name} of pool {pool} to {} GiB", size >> 30);
        Effect::GrowVolume.around(|| call(volume.resize(size, 0), what))
    }

    fn delete_volume(&self, pool: &str, name: &str) -> Result<(), Error> {
        let Some(volume) = optional(self.find_volume(pool, name))? else { return Ok(()) };
        let what = || format!("delete volume {name} of pool {pool}");
        match Effect::DeleteVolume.around(|| call(volume.delete(0), what)) {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    fn upload(&self, pool: &str, name: &str, length: u64, data: &mut dyn Read) -> Result<(), Error> {
        let what = || format!("upload volume {name} of pool {pool}");
        let volume = self.find_volume(pool, name)?;
        let stream = call(Stream::new(&self.connect, 0), what)?;
        call(volume.upload(&stream, 0, length, 0), what)?;
        match send(&stream, name, length, data, what) {
            Ok(()) => Effect::FinishUpload.around(|| call(stream.finish(), what)),
            Err(error) => {
                if let Err(abort) = stream.abort() {
                    tracing::debug!(error = %abort, "cannot abort the stream");
                }
                Err(error)
            }
        }
    }

    fn download(&self, pool: &str, name: &str, length: u64, out: &mut dyn Write) -> Result<(), Error> {
        let what = || format!("download volume {name} of pool {pool}");
        let volume = self.find_volume(pool, name)?;
        let stream = call(Stream::new(&self.connect, 0), what)?;
        call(volume.download(&stream, 0, length, 0), what)?;
        match receive(&stream, name, length, out, what) {
            Ok(()) => call(stream.finish(), what),
            Err(error) => {
                if let Err(abort) = stream.abort() {
                    tracing::debug!(error = %abort, "cannot abort the stream");
                }
                Err(error)
            }
        }
    }

    fn domain(&self, uuid: Uuid) -> Result<Option<DomainFacts>, Error> {
        let Some(domain) = optional(self.find_domain(uuid))? else { return Ok(None) };
        optional(domain_facts(&domain, uuid))
    }

    fn domain_named(&self, name: &str) -> Result<Option<Uuid>, Error> {
        let what = || format!("find domain {name}");
        optional(call(self.connect.lookup_domain_by_name(name), what))?
            .map(|domain| call(domain.uuid(), what))
            .transpose()
    }

    fn descriptions(&self) -> Result<Vec<domains::Description>, Error> {
        let what = || "list domains".to_owned();
        let mut descriptions = Vec::new();
        for domain in call(self.connect.list_all_domains(0), what)? {
            if let Some(xml) = optional(call(domain.xml_desc(0), what))? {
                descriptions.push(domains::read(&xml)?);
            }
        }
        Ok(descriptions)
    }

    fn define_domain(&self, xml: &str) -> Result<(), Error> {
        Effect::DefineDomain
            .around(|| call(self.connect.define_domain_xml(xml), || "define the domain".to_owned()).map(drop))
    }

    fn autostart_domain(&self, uuid: Uuid, autostart: bool) -> Result<(), Error> {
        let domain = self.find_domain(uuid)?;
        Effect::AutostartDomain.around(|| call(domain.set_autostart(autostart), || format!("autostart domain {uuid}")))
    }

    fn start_domain(&self, uuid: Uuid) -> Result<(), Error> {
        let domain = self.find_domain(uuid)?;
        Effect::StartDomain.around(|| call(domain.create(), || format!("start domain {uuid}")))
    }

    fn resume_domain(&self, uuid: Uuid) -> Result<(), Error> {
        let domain = self.find_domain(uuid)?;
        Effect::ResumeDomain.around(|| call(domain.resume(), || format!("resume domain {uuid}")))
    }

    fn shutdown_domain(&self, uuid: Uuid) -> Result<(), Error> {
        let domain = self.find_domain(uuid)?;
        if let Err(error) = events::limit_agent(&domain, AGENT_SECONDS) {
            tracing::debug!(%error, "no limit for the guest agent");
        }
        Effect::ShutDownDomain.around(|| call(domain.shutdown(), || format!("shut domain {uuid} down")))
    }

    fn destroy_domain(&self, uuid: Uuid) -> Result<(), Error> {
        let Some(domain) = optional(self.find_domain(uuid))? else { return Ok(()) };
        if !call(domain.is_active(), || format!("read domain {uuid}"))? {
            return Ok(());
        }
        Effect::DestroyDomain.around(|| call(domain.destroy(), || format!("destroy domain {uuid}")))
    }

    fn grow_disk(&self, uuid: Uuid, pool: &str, name: &str, size: u64) -> Result<(), Error> {
        // QEMU would make it smaller as well: nobody else may have made it larger meanwhile.
        let Some(volume) = self.volume(pool, name)?.filter(|volume| volume.capacity < size) else { return Ok(()) };
        let domain = self.find_domain(uuid)?;
        let what = || format!("grow volume {name} of running domain {uuid} to {} GiB", size >> 30);
        let resize = || domain.block_resize(&volume.path, size, sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES);
        Effect::GrowDisk.around(|| call(resize(), what))
    }

    fn undefine_domain(&self, uuid: Uuid) -> Result<(), Error> {
        let Some(domain) = optional(self.find_domain(uuid))? else { return Ok(()) };
        let all = sys::VIR_DOMAIN_UNDEFINE_NVRAM
            | sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_TPM;
        // Drivers that know none of the flags refuse them all.
        match Effect::UndefineDomain.around(|| domain.undefine_flags(all).or_else(|_| domain.undefine())) {
            Err(refusal) => {
                let error = Error::Call { what: format!("undefine domain {uuid}"), refusal };
                if error.is_not_found() { Ok(()) } else { Err(error) }
            }
            Ok(()) => Ok(()),
        }
    }

    fn guest_file(&self, uuid: Uuid, path: &str, limit: u32) -> Result<Option<Vec<u8>>, Error> {
        let domain = self.find_domain(uuid)?;
        agent::file_end(path, limit, |command| {
            let answer = domain.qemu_agent_command(&command.to_string(), AGENT_SECONDS, 0);
            call(answer, || format!("read {path} of domain {uuid}"))
        })
    }

    fn addresses(&self, uuid: Uuid, source: AddressSource) -> Result<Vec<FoundAddress>, Error> {
        let domain = self.find_domain(uuid)?;
        if source == AddressSource::Agent
            && let Err(error) = events::limit_agent(&domain, AGENT_SECONDS)
        {
            tracing::debug!(%error, "no limit for the guest agent");
        }
        call(events::guest_addresses(&domain, source), || format!("read addresses of domain {uuid}"))
    }
}

fn pool_facts(pool: &StoragePool) -> Result<PoolFacts, Error> {
    let what = || "read a storage pool".to_owned();
    let active = call(pool.is_active(), what)?;
    let autostart = call(pool.is_persistent(), what)? && call(pool.autostart(), what)?;
    volumes::read_pool(&call(pool.xml_desc(0), what)?, active, autostart)
}

fn domain_facts(domain: &Domain, uuid: Uuid) -> Result<DomainFacts, Error> {
    let what = || format!("read domain {uuid}");
    let state = match call(domain.state(), what)? {
        (_, Enum::Known(DomainStateReason::Paused(Enum::Known(DomainPausedReason::IOError)))) => DomainState::NoSpace,
        (Enum::Known(state), _) => state_of(state),
        (Enum::Unknown(_), _) => DomainState::Paused,
    };
    let persistent = call(domain.is_persistent(), what)?;
    let autostart = persistent && call(domain.autostart(), what)?;
    let config = domains::read(&call(domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE), what)?)?;
    let live = if state.is_active() { Some(domains::read(&call(domain.xml_desc(0), what)?)?) } else { None };
    Ok(DomainFacts { uuid, name: config.name.clone(), state, persistent, autostart, config, live })
}

fn state_of(state: State) -> DomainState {
    match state {
        State::NoState | State::Running | State::Blocked => DomainState::Running,
        State::Paused => DomainState::Paused,
        State::Shutdown => DomainState::ShuttingDown,
        State::Shutoff => DomainState::Off,
        State::Crashed => DomainState::Crashed,
        State::PMSuspended => DomainState::Suspended,
    }
}

fn send(stream: &Stream, name: &str, length: u64, data: &mut dyn Read, what: impl Fn() -> String) -> Result<(), Error> {
    let mut buffer = vec![0_u8; CHUNK];
    let mut sent: u64 = 0;
    loop {
        let filled = data.read(&mut buffer).map_err(|source| Error::Data { volume: name.to_owned(), source })?;
        if filled == 0 {
            break;
        }
        let mut rest = &buffer[..filled];
        while !rest.is_empty() {
            let taken = Effect::UploadPart.around(|| call(stream.send(rest), &what))?;
            // -2 means "would block", which a blocking stream never says.
            rest = &rest[usize::try_from(taken).unwrap_or(0)..];
        }
        sent += filled as u64;
    }
    if sent == length { Ok(()) } else { Err(Error::Length { volume: name.to_owned(), got: sent, expected: length }) }
}

fn receive(
    stream: &Stream,
    name: &str,
    length: u64,
    out: &mut dyn Write,
    what: impl Fn() -> String,
) -> Result<(), Error> {
    let mut buffer = vec![0_u8; CHUNK];
    let mut got: u64 = 0;
    loop {
        let taken = usize::try_from(call(stream.recv(&mut buffer), &what)?).unwrap_or(0);
        if taken == 0 {
            break;
        }
        out.write_all(&buffer[..taken]).map_err(|source| Error::Data { volume: name.to_owned(), source })?;
        got += taken as u64;
    }
    if got == length { Ok(()) } else { Err(Error::Length { volume: name.to_owned(), got, expected: length }) }
}
