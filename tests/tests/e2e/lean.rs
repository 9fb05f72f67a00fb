//! A cluster that two emulated CPUs bear while its control plane is there twice: no workers at first, no add-ons. Its
//! machines have their addresses by DHCP.

use anyhow::{Context, Result};
use edge_api::cluster_profile::{ClusterLayerKind, ClusterProfileSpec, ProfileType};
use edge_api::{ClusterProfile, names};
use kube::Api;
use kube::api::PostParams;

use crate::appliance::Appliance;

/// Of the shipped profile its infrastructure.
const PROFILE: &str = "lean";

/// The example's cluster is asked for with this profile, and without workers.
pub fn ask_for_it(appliance: &Appliance) -> Result<()> {
    appliance.edit_cluster("  profile: edge\n", &format!("  profile: {PROFILE}\n"))?;
    appliance.edit_cluster("  controlPlane:\n", "  controlPlane:\n    allowWorkers: true\n")?;
    if guests_are_emulated()? {
        let (two, one) =
            ("    size: 1\n    hardware:\n      vcpus: 2\n", "    size: 1\n    hardware:\n      vcpus: 1\n");
        appliance.edit_cluster(two, one)?;
    }
    appliance.edit_cluster("    - name: general\n      size: 1\n", "    - name: general\n      size: 0\n")?;
    appliance.edit_cluster("        - name: wan\n          addressPool: nodes\n", "        - name: wan\n")?;
    let wan = format!("    address: 192.168.{}.1/24\n", appliance.wan);
    let range = format!("    dhcp_range: {{start: 192.168.{0}.100, end: 192.168.{0}.120}}\n", appliance.wan);
    appliance.site.edit(&wan, &(wan.clone() + &range))
}

/// Whether this host's CPUs have no virtualization of their own. `/dev/kvm` may be there all the same.
pub fn guests_are_emulated() -> Result<bool> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    Ok(!cpus.contains("vmx") && !cpus.contains("svm"))
}

/// Makes the profile, on an appliance that is ready.
pub async fn make_its_profile(appliance: &Appliance) -> Result<()> {
    let profiles = Api::<ClusterProfile>::namespaced(appliance.client().await?, names::NAMESPACE);
    let shipped = profiles.get("edge").await.context("the shipped profile")?.spec;
    let layers = shipped.layers.into_iter().filter(|layer| layer.kind != ClusterLayerKind::AddOn).collect();
    let spec = ClusterProfileSpec { type_: ProfileType::Infra, layers, ..shipped };
    profiles.create(&PostParams::default(), &ClusterProfile::new(PROFILE, spec)).await?;
    Ok(())
}
