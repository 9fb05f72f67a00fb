//! Machines that cannot be: a condition with the reason, and no half-made domain.

use anyhow::{Context, Result};
use edge_api::virtual_machine::RootDisk;
use edge_api::{ConditionStatus, VirtualMachine, VirtualMachineSpec, condition};
use edge_tests::Inventory;
use edge_tests::inventory::virsh;
use edge_tests::wait::{Seen, eventually};
use kube::api::{DeleteParams, PostParams};

use crate::PATIENCE;
use crate::appliance::Appliance;

type Damage = fn(&mut VirtualMachineSpec);

/// Each is the example's client with one thing wrong; the condition must name it.
const CASES: &[(&str, &str, Damage)] = &[
    ("bad-pool", "nowhere", |spec| spec.root_disk = Some(RootDisk { pool: "nowhere".into(), size_gib: Some(1) })),
    ("bad-network", "nonet", |spec| spec.interfaces[0].network = "nonet".into()),
    ("bad-image", "noimage", |spec| spec.image = Some("noimage".into())),
    ("bad-memory", "16777216", |spec| spec.memory_mib = 16_777_216),
];

/// Creates, looks, deletes.
pub async fn check(appliance: &Appliance) -> Result<()> {
    let before = Inventory::libvirt()?;
    let machines = appliance.machines().await?;
    let good = machines.get("client").await?.spec;
    for (number, (name, wrong, damage)) in CASES.iter().enumerate() {
        let mut spec = good.clone();
        spec.id = format!("0000000{number}-0000-4000-8000-00000000e2e0");
        damage(&mut spec);
        machines.create(&PostParams::default(), &VirtualMachine::new(name, spec)).await.context(*name)?;
        let refused = appliance
            .machine(name, "to be refused", PATIENCE, |machine| {
                let conditions = machine.status.as_ref().map(|status| &*status.conditions).unwrap_or_default();
                condition::find(conditions, "Ready")
                    .is_some_and(|ready| ready.status == ConditionStatus::False && ready.message.contains(wrong))
            })
            .await?;
        let ready = refused.status.iter().flat_map(|status| &status.conditions).find(|c| c.type_ == "Ready");
        let ready = ready.context("a condition")?;
        println!("    {name}: {}: {}", ready.reason, ready.message);
        let domains = virsh(&["list", "--all", "--name"])?;
        anyhow::ensure!(!domains.lines().any(|domain| domain.ends_with(name)), "{name} has a domain:\n{domains}");
    }
    for (name, ..) in CASES {
        machines.delete(name, &DeleteParams::default()).await.context(*name)?;
        eventually(&format!("{name} to be gone"), PATIENCE, || async {
            let object = machines.get_opt(name).await?;
            Ok::<_, kube::Error>(Seen::when(object.is_none(), object.map(|object| object.status)))
        })
        .await?;
    }
    let difference = before.difference(&Inventory::libvirt()?);
    anyhow::ensure!(difference.is_empty(), "bad machines left something:\n{difference}");
    Ok(())
}
