//! Every side effect of the operator by its name, so that a test can end the operator before and after each.
//!
//! Those on libvirt are named where they are carried out (`libvirt/adapter.rs`), those on the API server by their
//! request: [`client`] is the only way to it, and in debug builds it ends the process at a write that is not listed.

use crash_points::Effects as _;
use http::Method;
use kube::{Client, Config};

crash_points::effects! {
    /// A side effect. Those on the API server are named verb and resource; those on the API server of a workload
    /// cluster, whose layers bring anything, by their verb.
    #[allow(missing_docs, reason = "the names say it")]
    pub enum Effect {
        DefineNetwork = "define-network",
        StartNetwork = "start-network",
        AutostartNetwork = "autostart-network",
        StopNetwork = "stop-network",
        UndefineNetwork = "undefine-network",
        ReserveAddress = "reserve-address",
        ReleaseAddress = "release-address",
        DefinePool = "define-pool",
        BuildPool = "build-pool",
        StartPool = "start-pool",
        AutostartPool = "autostart-pool",
        StopPool = "stop-pool",
        UndefinePool = "undefine-pool",
        CreateVolume = "create-volume",
        UploadPart = "upload-part",
        FinishUpload = "finish-upload",
        GrowVolume = "grow-volume",
        DeleteVolume = "delete-volume",
        DefineDomain = "define-domain",
        AutostartDomain = "autostart-domain",
        StartDomain = "start-domain",
        ResumeDomain = "resume-domain",
        ShutDownDomain = "shut-down-domain",
        DestroyDomain = "destroy-domain",
        GrowDisk = "grow-disk",
        UndefineDomain = "undefine-domain",

        PatchAppliance = "patch-appliances",
        PatchApplianceStatus = "patch-appliances/status",
        CreateImage = "create-virtualmachineimages",
        PatchImage = "patch-virtualmachineimages",
        PatchImageStatus = "patch-virtualmachineimages/status",
        DeleteImage = "delete-virtualmachineimages",
        CreateMachine = "create-virtualmachines",
        PatchMachine = "patch-virtualmachines",
        PatchMachineStatus = "patch-virtualmachines/status",
        DeleteMachine = "delete-virtualmachines",
        CreateSecret = "create-secrets",
        PatchSecret = "patch-secrets",
        DeleteSecret = "delete-secrets",
        PatchEdgeCluster = "patch-edgeclusters",
        PatchEdgeClusterStatus = "patch-edgeclusters/status",
        PatchCluster = "patch-clusters",
        DeleteCluster = "delete-clusters",
        PatchClusterMachine = "patch-machines",
        PatchLibvirtCluster = "patch-libvirtclusters",
        PatchLibvirtClusterStatus = "patch-libvirtclusters/status",
        DeleteLibvirtCluster = "delete-libvirtclusters",
        PatchLibvirtMachine = "patch-libvirtmachines",
        PatchLibvirtMachineStatus = "patch-libvirtmachines/status",
        DeleteLibvirtMachine = "delete-libvirtmachines",
        PatchAddressPool = "patch-ippools",
        PatchAddressPoolStatus = "patch-ippools/status",
        CreateAddressClaim = "create-ipaddressclaims",
        PatchAddressClaim = "patch-ipaddressclaims",
        PatchAddressClaimStatus = "patch-ipaddressclaims/status",
        DeleteAddressClaim = "delete-ipaddressclaims",
        CreateAddress = "create-ipaddresses",
        PatchAddress = "patch-ipaddresses",
        DeleteAddress = "delete-ipaddresses",
        CreateEvent = "create-events",

        CreateInCluster = "create-in-cluster",
        PatchInCluster = "patch-in-cluster",
        DeleteInCluster = "delete-in-cluster",
    }
}

impl Effect {
    /// Carries it out.
    pub fn around<T>(self, act: impl FnOnce() -> T) -> T {
        crash_points::around(self, act)
    }

    /// What a request to the API server does; `None` where it only reads.
    ///
    /// # Errors
    /// A write that is not in the list, by its name.
    fn of(method: &Method, path: &str) -> Result<Option<Self>, String> {
        if *method == Method::GET {
            return Ok(None);
        }
        let verb = if *method == Method::POST { "create".to_owned() } else { method.as_str().to_lowercase() };
        let name = format!("{verb}-{}", resource(path).unwrap_or(path.to_owned()));
        Self::ALL.iter().find(|effect| effect.name() == name).map(|effect| Some(*effect)).ok_or(name)
    }

    /// What a request to the API server of a workload cluster does; `None` where it only reads.
    ///
    /// # Errors
    /// A write that is not in the list, by its name.
    pub fn in_cluster(method: &Method, _path: &str) -> Result<Option<Self>, String> {
        match *method {
            Method::GET => Ok(None),
            Method::POST => Ok(Some(Self::CreateInCluster)),
            Method::PATCH => Ok(Some(Self::PatchInCluster)),
            Method::DELETE => Ok(Some(Self::DeleteInCluster)),
            _ => Err(format!("{method}-in-cluster")),
        }
    }
}

/// Of `/api/v1/…` or `/apis/GROUP/VERSION/…` the resource, with its subresource.
fn resource(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let (["api", _, rest @ ..] | ["apis", _, _, rest @ ..]) = parts.as_slice() else { return None };
    match rest {
        ["namespaces", _, plural, _, subresource] | [plural, _, subresource] if *plural != "namespaces" => {
            Some(format!("{plural}/{subresource}"))
        }
        ["namespaces", _, plural, ..] | [plural, ..] => Some((*plural).to_owned()),
        [] => None,
    }
}

/// A client whose writes are named effects.
///
/// # Errors
/// As of [`Client::try_from`].
pub fn client(config: Config) -> kube::Result<Client> {
    crash_points::api::client(config, Effect::of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_name_of_what_it_does() {
        let named = |method: Method, path: &str| Effect::of(&method, path);
        let own = "/apis/pcg-edge.io/v1alpha1/namespaces/pcg-edge-system";
        assert_eq!(named(Method::GET, "/api/v1/namespaces/n/secrets/s"), Ok(None));
        assert_eq!(named(Method::POST, "/api/v1/namespaces/n/secrets"), Ok(Some(Effect::CreateSecret)));
        assert_eq!(named(Method::DELETE, "/api/v1/namespaces/n/secrets/s"), Ok(Some(Effect::DeleteSecret)));
        assert_eq!(named(Method::PATCH, &format!("{own}/appliances/local")), Ok(Some(Effect::PatchAppliance)));
        let status = named(Method::PATCH, &format!("{own}/appliances/local/status"));
        assert_eq!(status, Ok(Some(Effect::PatchApplianceStatus)));
        assert_eq!(named(Method::PUT, &format!("{own}/appliances/local")), Err("put-appliances".to_owned()));
        assert_eq!(named(Method::POST, "/api/v1/namespaces"), Err("create-namespaces".to_owned()));
    }

    #[test]
    fn no_two_effects_share_a_name() {
        let mut names: Vec<&str> = Effect::ALL.iter().map(|effect| effect.name()).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
