//! libvirt's C callbacks, and the two calls whose Rust binding leaks or is missing. The only module with `unsafe`.
//!
//! The event loop runs on one thread of its own and must be registered before the first connection is made. Callbacks
//! run on that thread and only hand a [`HostEvent`] to a [`Sink`], which must not block.
//!
//! ```text
//! libvirtd ──socket──► virEventRunDefaultImpl ──callback──► Sink ──channel──► controllers
//! ```
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};
use std::ptr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

use super::{AddressSource, FoundAddress};

/// Something happened at a hypervisor.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HostEvent {
    /// A domain was defined, started, stopped, rebooted, or its agent came or went.
    Domain(Uuid),
    /// A network or pool was defined, started, stopped or removed.
    Infrastructure,
    /// The connection is gone.
    Closed,
}

/// Takes events on libvirt's event thread.
pub type Sink = Arc<dyn Fn(HostEvent) + Send + Sync>;

/// Registers libvirt's event loop and starts its thread, once per process. Comes before the first connection.
pub fn start_event_loop() -> Result<(), Error> {
    static STARTED: OnceLock<Result<(), Error>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            // Errors are returned; libvirt shall not write them to standard error as well.
            virt::error::clear_error_callback();
            virt::event::event_register_default_impl()?;
            let run = || loop {
                if let Err(error) = virt::event::event_run_default_impl() {
                    tracing::warn!(%error, "libvirt's event loop");
                    std::thread::sleep(Duration::from_millis(100));
                }
            };
            if let Err(error) = std::thread::Builder::new().name("libvirt-events".into()).spawn(run) {
                tracing::error!(%error, "cannot start the thread for libvirt's events");
            }
            Ok(())
        })
        .clone()
}

/// Callbacks of one connection; dropping it takes them back.
pub struct Subscription {
    connect: Connect,
    domains: Vec<c_int>,
    networks: Vec<c_int>,
    pools: Vec<c_int>,
}

impl Subscription {
    /// Registers for all events the controllers need.
    pub fn new(connect: &Connect, sink: &Sink) -> Result<Self, Error> {
        let mut made = Self { connect: connect.clone(), domains: Vec::new(), networks: Vec::new(), pools: Vec::new() };
        // SAFETY: `opaque` is a leaked box that `free_sink` takes back when libvirt lets the callback go. On failure
        // libvirt does not call it; the box is taken back here.
        unsafe {
            let opaque = leak(sink);
            if sys::virConnectRegisterCloseCallback(connect.as_ptr(), Some(closed), opaque, Some(free_sink)) < 0 {
                free_sink(opaque);
                return Err(Error::last_error());
            }
        }
        // SAFETY: libvirt calls back with the signature that belongs to the event's number and asks for the generic
        // function type here by contract (virConnectDomainEventRegisterAny).
        let domain_events: [(sys::virDomainEventID, DomainCallback); 3] = unsafe {
            [
                (
                    sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                    std::mem::transmute::<DomainLifecycle, DomainCallback>(domain_lifecycle),
                ),
                (
                    sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
                    std::mem::transmute::<AgentLifecycle, DomainCallback>(domain_agent),
                ),
                (sys::VIR_DOMAIN_EVENT_ID_REBOOT, domain_plain),
            ]
        };
        for (id, callback) in domain_events {
            // SAFETY: as above.
            let registered = unsafe {
                let opaque = leak(sink);
                let number = sys::virConnectDomainEventRegisterAny(
                    connect.as_ptr(),
                    ptr::null_mut(),
                    id as c_int,
                    Some(callback),
                    opaque,
                    Some(free_sink),
                );
                if number < 0 {
                    free_sink(opaque);
                }
                number
            };
            if registered < 0 {
                // The test driver knows only some of them; lifecycle is the one that must work.
                if id == sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE {
                    return Err(Error::last_error());
                }
                continue;
            }
            made.domains.push(registered);
        }
        // SAFETY: as above; both lifecycle callbacks have the same signature but for the object's type.
        unsafe {
            let opaque = leak(sink);
            let number = sys::virConnectNetworkEventRegisterAny(
                connect.as_ptr(),
                ptr::null_mut(),
                sys::VIR_NETWORK_EVENT_ID_LIFECYCLE as c_int,
                Some(std::mem::transmute::<NetworkLifecycle, NetworkCallback>(network_lifecycle)),
                opaque,
                Some(free_sink),
            );
            if number < 0 {
                free_sink(opaque);
            } else {
                made.networks.push(number);
            }

            let opaque = leak(sink);
            let number = sys::virConnectStoragePoolEventRegisterAny(
                connect.as_ptr(),
                ptr::null_mut(),
                sys::VIR_STORAGE_POOL_EVENT_ID_LIFECYCLE as c_int,
                Some(std::mem::transmute::<PoolLifecycle, PoolCallback>(pool_lifecycle)),
                opaque,
                Some(free_sink),
            );
            if number < 0 { free_sink(opaque) } else { made.pools.push(number) }
        }
        Ok(made)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // SAFETY: the numbers came from this connection. Failures mean that the connection is gone, and its callbacks
        // with it.
        unsafe {
            let connect = self.connect.as_ptr();
            for number in &self.domains {
                sys::virConnectDomainEventDeregisterAny(connect, *number);
            }
            for number in &self.networks {
                sys::virConnectNetworkEventDeregisterAny(connect, *number);
            }
            for number in &self.pools {
                sys::virConnectStoragePoolEventDeregisterAny(connect, *number);
            }
            sys::virConnectUnregisterCloseCallback(connect, Some(closed));
        }
    }
}

type DomainLifecycle = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
type AgentLifecycle = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void);
type NetworkLifecycle = unsafe extern "C" fn(sys::virConnectPtr, sys::virNetworkPtr, c_int, c_int, *mut c_void);
type PoolLifecycle = unsafe extern "C" fn(sys::virConnectPtr, sys::virStoragePoolPtr, c_int, c_int, *mut c_void);
type DomainCallback = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
type NetworkCallback = unsafe extern "C" fn(sys::virConnectPtr, sys::virNetworkPtr, *mut c_void);
type PoolCallback = unsafe extern "C" fn(sys::virConnectPtr, sys::virStoragePoolPtr, *mut c_void);

fn leak(sink: &Sink) -> *mut c_void {
    Box::into_raw(Box::new(sink.clone())).cast()
}

unsafe extern "C" fn free_sink(opaque: *mut c_void) {
    // SAFETY: made by `leak`, and libvirt frees it once.
    drop(unsafe { Box::from_raw(opaque.cast::<Sink>()) });
}

unsafe fn give(opaque: *mut c_void, event: HostEvent) {
    // SAFETY: made by `leak`, and alive until `free_sink`.
    let sink = unsafe { &*opaque.cast::<Sink>() };
    sink(event);
}

unsafe fn give_domain(domain: sys::virDomainPtr, opaque: *mut c_void) {
    let mut bytes = [0_u8; 16];
    // SAFETY: libvirt lends the domain for the time of the callback and writes VIR_UUID_BUFLEN (16) bytes.
    unsafe {
        if sys::virDomainGetUUID(domain, bytes.as_mut_ptr()) == 0 {
            give(opaque, HostEvent::Domain(Uuid::from_bytes(bytes)));
        }
    }
}

unsafe extern "C" fn closed(_: sys::virConnectPtr, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: see `give`.
    unsafe { give(opaque, HostEvent::Closed) }
}

unsafe extern "C" fn domain_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: see `give_domain`.
    unsafe { give_domain(domain, opaque) }
    0
}

unsafe extern "C" fn domain_agent(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _state: c_int,
    _reason: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: see `give_domain`.
    unsafe { give_domain(domain, opaque) }
}

unsafe extern "C" fn domain_plain(_: sys::virConnectPtr, domain: sys::virDomainPtr, opaque: *mut c_void) {
    // SAFETY: see `give_domain`.
    unsafe { give_domain(domain, opaque) }
}

unsafe extern "C" fn network_lifecycle(
    _: sys::virConnectPtr,
    _: sys::virNetworkPtr,
    _event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: see `give`.
    unsafe { give(opaque, HostEvent::Infrastructure) }
}

unsafe extern "C" fn pool_lifecycle(
    _: sys::virConnectPtr,
    _: sys::virStoragePoolPtr,
    _event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: see `give`.
    unsafe { give(opaque, HostEvent::Infrastructure) }
}

/// Addresses of a guest. The `virt` crate's own call frees neither the interfaces nor their address arrays, which
/// would add up over looks that never end.
pub fn guest_addresses(domain: &Domain, source: AddressSource) -> Result<Vec<FoundAddress>, Error> {
    let source = match source {
        AddressSource::Agent => sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
        AddressSource::Lease => sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
    };
    let mut found = Vec::new();
    // SAFETY: libvirt allocates an array of `count` interfaces, each freed by virDomainInterfaceFree, the array by
    // free(3). Strings are copied before that.
    unsafe {
        let mut interfaces: *mut sys::virDomainInterfacePtr = ptr::null_mut();
        let count = sys::virDomainInterfaceAddresses(domain.as_ptr(), &raw mut interfaces, source, 0);
        if count < 0 {
            return Err(Error::last_error());
        }
        for index in 0..count as usize {
            let interface = *interfaces.add(index);
            if !(*interface).hwaddr.is_null() {
                let mac = CStr::from_ptr((*interface).hwaddr).to_string_lossy().to_lowercase();
                for address in 0..(*interface).naddrs as usize {
                    let address = &*(*interface).addrs.add(address);
                    found.push(FoundAddress {
                        mac: mac.clone(),
                        ip: CStr::from_ptr(address.addr).to_string_lossy().into_owned(),
                        prefix: address.prefix,
                    });
                }
            }
            sys::virDomainInterfaceFree(interface);
        }
        libc::free(interfaces.cast());
    }
    Ok(found)
}

/// Bounds how long a call to the guest agent may take; without it one stuck guest holds a thread for ever.
pub fn limit_agent(domain: &Domain, seconds: i32) -> Result<(), Error> {
    // SAFETY: plain call on a domain that is alive.
    let done = unsafe { sys::virDomainAgentSetResponseTimeout(domain.as_ptr(), seconds, 0) };
    if done < 0 { Err(Error::last_error()) } else { Ok(()) }
}
