//! On real libvirtd, QEMU and registry, with the tiny guest.

mod support;

use anyhow::Result;
use edge_api::{Appliance, VirtualMachine, VirtualMachineImage};
use serde_json::json;
use support::Site;
use uuid::Uuid;

const URI: &str = "qemu:///system";

/// Appliance → image → machine with an address from its agent → all removed again.
#[tokio::test]
async fn a_machine_comes_up_and_goes() -> Result<()> {
    let site = Site::start("optest", URI).await?;
    site.appliance().await?;
    let artifact = site.registry.push_tiny().await?;
    site.image("tiny", &artifact).await?;
    let id = Uuid::new_v4();
    site.create::<VirtualMachine>(
        "one",
        json!({
            "id": id.to_string(), "appliance": "local", "vcpus": 1, "memoryMiB": 256, "image": "tiny",
            "kernelArgs": "console=ttyS0", "guestAgent": true, "interfaces": [{ "network": "wan" }],
            "rootDisk": { "pool": "default", "sizeGiB": 1 },
        }),
    )
    .await?;
    let vm = site.ready_vm("one").await?;
    println!("{}", serde_json::to_string_pretty(&vm)?);
    site.delete::<VirtualMachine>("one").await?;
    site.gone::<VirtualMachine>("one").await?;
    site.delete::<VirtualMachineImage>("tiny").await?;
    site.delete::<Appliance>("local").await?;
    site.gone::<Appliance>("local").await?;
    Ok(())
}
