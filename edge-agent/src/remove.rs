//! `edge-agent remove` and `edgectl reset`: takes away all that one instance made on this host, in the reverse order of
//! making it, and nothing else. What had to be left is said, and makes the command fail. Doing it again is safe.
//!
//! Machines go first, by the API, because vm-operator alone knows what it made in libvirt (D5).

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use edge_api::agent::Cluster;
use edge_api::names::NAMESPACE;
use edge_api::{Appliance, EdgeCluster, Instance, VirtualMachine, VirtualMachineImage};
use kube::api::{DeleteParams, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind, NamespaceResourceScope};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::daemon::{self, Error};
use crate::durable;
use crate::engine::chain;
use crate::paths::Paths;
use crate::ports::docker::Docker;
use crate::ports::firewall::Firewall;
use crate::steps::system_cluster;
use crate::world;

/// Longest wait for the API server of a stopped node.
const API_DEADLINE: Duration = Duration::from_secs(150);
/// Longest wait for all objects of one kind to go. A guest that ignores its shutdown takes a while.
const GONE_DEADLINE: Duration = Duration::from_mins(4);
/// Longest wait for whole clusters: their nodes are drained one after another.
const CLUSTERS_DEADLINE: Duration = Duration::from_mins(15);
/// How often it is said what is still there.
const REMINDER: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Root of the agent's state.
    pub root: PathBuf,
    /// Instance.
    pub instance: Instance,
    /// Keep the root: data of the cluster, identity, logins, profiles, logs.
    pub keep_data: bool,
    /// Go on where machines cannot be removed, and say what was left.
    pub force: bool,
    /// End a running agent first; otherwise it is an error that there is one.
    pub end_agent: bool,
}

/// Removes; returns what had to be left.
pub async fn run(options: &Options) -> Result<Vec<String>, Error> {
    let paths = Paths::new(&options.root);
    let instance = &options.instance;
    let docker = Docker::default();
    let node = format!("{}-control-plane", instance.kind_cluster());
    let mut left = Vec::new();

    let has_root = paths.join("state").exists();
    let lock = if has_root {
        let lock = if options.end_agent { daemon::take_over(&paths).await? } else { daemon::lock(&paths)? };
        daemon::claim(&paths, instance)?;
        Some(lock)
    } else {
        None
    };

    match docker.container(&node).await {
        Err(_) if !has_root => {}
        Err(e) => left.push(format!("docker does not answer, so its part stays: {}", chain(&e))),
        Ok(container) => {
            let data = container.iter().flat_map(|c| &c.mounts).find(|(_, inside)| inside == "/var/lib/etcd");
            if let Some((data, _)) = data
                && *data != paths.join("etcd").display().to_string()
            {
                return Err(Error::OtherRoot { node, data: data.clone(), root: options.root.clone() });
            }
            let running = container.as_ref().map(|c| c.running);
            if paths.host_touched().exists() {
                match remove_objects(&paths, &docker, &node, running).await {
                    Ok(()) => drop(durable::remove_file(&paths.host_touched())?),
                    Err(why) => left.push(format!(
                        "what libvirt has of this instance (domains, networks and pools named `{instance}-…`): {why}"
                    )),
                }
            }
            if !left.is_empty() && !options.force {
                // The one that could still clean up must not go.
                left.push("the system cluster and the root, so that it can be tried again, or with --force".to_owned());
                return Ok(left);
            }
            system_cluster::remove_volumes_of_lost(&docker, &paths, container.as_ref()).await;
            if running.is_some() {
                match docker.remove_container(&node).await {
                    Ok(_) => say(&format!("removed container {node}")),
                    Err(e) => left.push(format!("container {node}: {}", chain(&e))),
                }
            }
            match Firewall::new(instance).remove().await {
                Ok(true) => say("removed the packet filter of its networks"),
                Ok(false) => {}
                Err(e) => left.push(format!("the packet filter of its networks: {}", chain(&e))),
            }
            remove_from_docker(&docker, instance, &mut left).await;
        }
    }
    if has_root && !options.keep_data && (left.is_empty() || options.force) {
        remove_root(&paths)?;
    }
    drop(lock);
    Ok(left)
}

/// Tells what was done. Nobody may be reading any more; that is no reason to stop half-way.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

async fn remove_from_docker(docker: &Docker, instance: &Instance, left: &mut Vec<String>) {
    let network = instance.docker_network();
    match docker.remove_network(&network).await {
        Ok(true) => say(&format!("removed docker network {network}")),
        Ok(false) => {}
        Err(e) => left.push(format!("docker network {network}: {}", chain(&e))),
    }
    match system_cluster::image::all(docker, instance).await {
        Ok(images) => {
            for image in images {
                match docker.remove_image(&image).await {
                    Ok(_) => say(&format!("removed docker image {image}")),
                    Err(e) => left.push(format!("docker image {image}: {}", chain(&e))),
                }
            }
        }
        Err(e) => left.push(format!("docker images: {}", chain(&e))),
    }
}

/// The tree of the agent, and nothing that somebody else put below the root, except in the folders that are ours. The
/// state goes last: by it the next try knows that there is something to remove.
fn remove_root(paths: &Paths) -> Result<(), Error> {
    for folder in [
        "audit", "bundles", "ca", "certs.d", "console", "etcd", "kube", "node", "pki", "pools", "profiles", "registry",
        "restore", "conf", "run",
    ] {
        durable::remove_folder(&paths.join(folder))?;
    }
    for file in ["edge.log", "edge.log.1"] {
        durable::remove_file(&paths.join(file))?;
    }
    durable::remove_folder(&paths.join("state"))?;
    let root = paths.root();
    match std::fs::remove_dir(root) {
        Ok(()) => say(&format!("removed {}", root.display())),
        Err(_) => say(&format!("removed the agent's state below {}; what else is there stays", root.display())),
    }
    Ok(())
}

/// Deletes workload clusters, machines, images and the appliance, in this order, and waits until vm-operator has let each
/// go.
async fn remove_objects(paths: &Paths, docker: &Docker, node: &str, running: Option<bool>) -> Result<(), String> {
    if running.is_none() || !paths.kubeconfig().exists() {
        return Err(
            "the system cluster is not there; start the agent once, so that it comes back, and try again".to_owned()
        );
    }
    if running == Some(false) {
        docker.start(node).await.map_err(|e| chain(&e))?;
        say("started the stopped system cluster for its machines to be removed");
    }
    let client = connect(paths).await?;
    remove_from_cluster(&client).await
}

async fn remove_from_cluster(client: &kube::Client) -> Result<(), String> {
    fn all<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(client: &kube::Client) -> Api<K> {
        Api::namespaced(client.clone(), NAMESPACE)
    }
    // Clusters first: they would make machines that are missing again; and ours before those of Cluster API, for the same
    // reason.
    let told = |cluster: &EdgeCluster| format!("{} ({})", cluster.name_any(), Cluster::from(cluster).message);
    remove_all(&all::<EdgeCluster>(client), "workload cluster", CLUSTERS_DEADLINE, told).await?;
    let clusters = ApiResource::from_gvk(&GroupVersionKind::gvk("cluster.x-k8s.io", "v1beta2", "Cluster"));
    let clusters: Api<DynamicObject> = Api::namespaced_with(client.clone(), NAMESPACE, &clusters);
    remove_all(&clusters, "cluster", CLUSTERS_DEADLINE, ResourceExt::name_any).await?;
    remove_all(&all::<VirtualMachine>(client), "virtual machine", GONE_DEADLINE, ResourceExt::name_any).await?;
    remove_all(&all::<VirtualMachineImage>(client), "image", GONE_DEADLINE, ResourceExt::name_any).await?;
    remove_all(&all::<Appliance>(client), "appliance", GONE_DEADLINE, ResourceExt::name_any).await
}

async fn connect(paths: &Paths) -> Result<kube::Client, String> {
    let begun = Instant::now();
    loop {
        let why = match world::client(paths).await {
            Ok(client) => match client.apiserver_version().await {
                Ok(_) => return Ok(client),
                Err(e) => chain(&e),
            },
            Err(e) => e.reason,
        };
        if begun.elapsed() > API_DEADLINE {
            return Err(format!("the API server does not answer: {why}"));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Deletes all objects of one kind and waits until they are gone. `told` is how one that is still there is told of.
async fn remove_all<K>(api: &Api<K>, what: &str, deadline: Duration, told: impl Fn(&K) -> String) -> Result<(), String>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let begun = Instant::now();
    let mut reminded = begun;
    let mut known: Vec<String> = Vec::new();
    loop {
        let objects = match api.list(&ListParams::default()).await {
            Ok(list) => list.items,
            // The kind was never installed.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(e) => return Err(format!("list {what}s: {}", chain(&e))),
        };
        let names: Vec<String> = objects.iter().map(ResourceExt::name_any).collect();
        for gone in known.iter().filter(|name| !names.contains(name)) {
            say(&format!("removed {what} {gone}"));
        }
        if names.is_empty() {
            return Ok(());
        }
        for object in objects.iter().filter(|o| o.meta().deletion_timestamp.is_none()) {
            match api.delete(&object.name_any(), &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(e) => return Err(format!("delete {what} {}: {}", object.name_any(), chain(&e))),
                Ok(_) => {}
            }
        }
        let left = || objects.iter().map(&told).collect::<Vec<_>>().join(", ");
        if begun.elapsed() > deadline {
            return Err(format!("after {} s still there: {what} {}", deadline.as_secs(), left()));
        }
        if reminded.elapsed() > REMINDER {
            say(&format!("waits for {what} {}", left()));
            reminded = Instant::now();
        }
        known = names;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[cfg(test)]
mod tests {
    use edge_tests::ControlPlane;
    use k8s_openapi::api::core::v1::Namespace;
    use kube::api::{Patch, PatchParams, PostParams};
    use serde_json::{Value, json};

    use super::*;
    use crate::clusters::file;

    async fn make<K>(api: Api<K>, object: Value)
    where
        K: Resource + Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug,
    {
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn clusters_go_before_machines_and_what_is_left_is_named() {
        let plane = ControlPlane::start().await.unwrap();
        plane.install_crds().await.unwrap();
        let client = plane.client();
        make(Api::<Namespace>::all(client.clone()), json!({"metadata": {"name": NAMESPACE}})).await;
        let clusters: Api<EdgeCluster> = Api::namespaced(client.clone(), NAMESPACE);
        let machines: Api<VirtualMachine> = Api::namespaced(client.clone(), NAMESPACE);
        let mut shop = file::load(include_bytes!("../../examples/site/clusters/shop.yaml")).unwrap();
        shop.metadata.finalizers = Some(vec!["pcg-edge.io/test".to_owned()]);
        clusters.create(&PostParams::default(), &shop).await.unwrap();
        let machine = json!({"apiVersion": "pcg-edge.io/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": "router"},
            "spec": {"id": "6d3a7c1e-0000-4000-8000-000000000000", "appliance": "local", "vcpus": 1, "memoryMiB": 256,
                "image": "i"}});
        make(machines.clone(), machine).await;

        let short = Duration::from_secs(1);
        let left = remove_all(&clusters, "workload cluster", short, ResourceExt::name_any).await;
        assert_eq!(left, Err("after 1 s still there: workload cluster shop".to_owned()));
        let operator = async {
            assert!(clusters.get("shop").await.unwrap().metadata.deletion_timestamp.is_some());
            let router = machines.get("router").await.unwrap();
            assert_eq!(router.metadata.deletion_timestamp, None, "the cluster is still there");
            let let_go = Patch::Merge(json!({"metadata": {"finalizers": null}}));
            clusters.patch("shop", &PatchParams::default(), &let_go).await.unwrap();
        };
        // The kinds of Cluster API are not there, which is no reason to stop.
        let (removed, ()) = tokio::join!(remove_from_cluster(&client), operator);
        assert_eq!(removed, Ok(()));
        assert!(machines.list(&ListParams::default()).await.unwrap().items.is_empty());
    }
}
