//! Every type that crosses a process boundary in PCG-Edge: the site file, the Kubernetes kinds and the agent's socket
//! API. Types only: no I/O and no decisions.

pub mod agent;
pub mod appliance;
pub mod bundle;
pub mod condition;
pub mod instance;
pub mod names;
pub mod site;
pub mod virtual_machine;
pub mod virtual_machine_image;

pub use appliance::{Appliance, ApplianceSpec, ApplianceStatus};
pub use condition::{Condition, ConditionStatus};
pub use instance::Instance;
pub use site::SiteConfig;
pub use virtual_machine::{VirtualMachine, VirtualMachineSpec, VirtualMachineStatus};
pub use virtual_machine_image::{VirtualMachineImage, VirtualMachineImageSpec, VirtualMachineImageStatus};
