//! The example's workload cluster: from one `EdgeCluster` to pods that answer, and back to nothing.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use edge_api::bundle::{INDEX_FILE, Index};
use edge_api::edge_cluster::{ClusterPhase, TaskState};
use edge_api::{condition, names};
use edge_tests::Inventory;
use edge_tests::wait::{Seen, eventually};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod, Secret, Service};
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;

use crate::appliance::Appliance;

/// The example's cluster.
pub const NAME: &str = "shop";
/// A shell, a web server and a client.
const BUSYBOX: &str = "pcg-edge.io/busybox:1";
/// Emulated guests on two cores need most of this.
pub const PATIENCE: Duration = Duration::from_mins(45);

/// How long each stage took, from the creation of the object or the start of the script.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// First QEMU process.
    pub first_process: Duration,
    /// The API server answers at its virtual address.
    pub api_server: Duration,
    /// Both nodes are ready.
    pub nodes: Duration,
}

/// `up` once more on an appliance that is ready, with the example's cluster of so many nodes; measures its stages
/// meanwhile.
pub async fn up(appliance: &Appliance, nodes: usize) -> Result<Times> {
    let watched = stages(appliance, nodes);
    let up = async {
        let status = appliance.up_with_clusters()?.status().await?;
        anyhow::ensure!(status.success(), "up: {status}");
        Ok(())
    };
    let (times, ()) = tokio::try_join!(watched, up)?;
    Ok(times)
}

async fn stages(appliance: &Appliance, nodes: usize) -> Result<Times> {
    let clusters = appliance.clusters().await?;
    let object = eventually("the EdgeCluster", PATIENCE, || async {
        let found = clusters.get_opt(NAME).await?;
        Ok::<_, kube::Error>(found.map_or_else(|| Seen::NotYet("none".to_owned()), Seen::Done))
    });
    let object = object.await?;
    let start = Instant::now();
    machines(appliance, 1).await?;
    let first_process = start.elapsed();
    let address: Ipv4Addr = object.spec.virtual_ip.parse()?;
    api_server(address).await?;
    let api_server = start.elapsed();
    // The kubeconfig is there before the API server is.
    let workload = client(appliance).await?;
    nodes_ready(&workload, nodes).await?;
    Ok(Times { first_process, api_server, nodes: start.elapsed() })
}

/// Waits until so many machines of the cluster run.
pub async fn machines(appliance: &Appliance, count: usize) -> Result<()> {
    eventually(&format!("{count} running machines"), PATIENCE, || async {
        let running = appliance.running(NAME)?;
        anyhow::Ok(Seen::when(running.len() == count, running))
    })
    .await?;
    Ok(())
}

/// Waits until an API server answers.
pub async fn api_server(address: Ipv4Addr) -> Result<()> {
    let http = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).no_proxy().build()?;
    let url = format!("https://{address}:6443/healthz");
    eventually(&url, PATIENCE, || async {
        let answer = http.get(&url).timeout(Duration::from_secs(5)).send().await?;
        Ok::<_, reqwest::Error>(Seen::when(answer.status().is_success(), answer.status()))
    })
    .await?;
    Ok(())
}

/// Waits until so many nodes are there, and all are ready.
pub async fn nodes_ready(workload: &Client, count: usize) -> Result<()> {
    let nodes = Api::<Node>::all(workload.clone());
    eventually(&format!("{count} ready nodes"), PATIENCE, || async {
        let list = nodes.list(&ListParams::default()).await?.items;
        let states: Vec<_> = list.iter().map(|node| (node.metadata.name.clone(), is_ready(node))).collect();
        Ok::<_, kube::Error>(Seen::when(states.len() == count && states.iter().all(|(_, ready)| *ready), states))
    })
    .await?;
    Ok(())
}

/// What a node says of itself.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Client of the workload cluster, by the kubeconfig that `edgectl` gives.
pub async fn client(appliance: &Appliance) -> Result<Client> {
    let output = appliance.edgectl(&["cluster", "kubeconfig", NAME]).await?;
    client_of(&String::from_utf8(output.stdout)?).await
}

/// Client by a kubeconfig.
pub async fn client_of(kubeconfig: &str) -> Result<Client> {
    let mut config =
        Config::from_custom_kubeconfig(Kubeconfig::from_yaml(kubeconfig)?, &KubeConfigOptions::default()).await?;
    // An emulated API server takes its time.
    config.read_timeout = Some(Duration::from_secs(30));
    Ok(Client::try_from(config)?)
}

/// The object says what is there: running, every task done. A layer may stop being available for a moment, on a node
/// that is busy with the next one.
pub async fn every_task_is_done(appliance: &Appliance) -> Result<()> {
    let clusters = appliance.clusters().await?;
    let tasks = eventually("a cluster that runs, with every task done", PATIENCE, || async {
        let Some(status) = clusters.get(NAME).await?.status else { return Ok(Seen::NotYet("no status".to_owned())) };
        let done = status.phase == ClusterPhase::Running
            && condition::is_true(&status.conditions, "Ready")
            && status.nodes.as_deref() == Some("2/2")
            && !status.tasks.is_empty()
            && status.tasks.iter().all(|task| task.state == TaskState::Done);
        Ok::<_, kube::Error>(if done { Seen::Done(status.tasks) } else { Seen::NotYet(format!("{status:?}")) })
    });
    for task in tasks.await? {
        println!("    {}", task.name);
    }
    Ok(())
}

/// A pod on the worker with a volume answers by its service's name and by a load balancer's address.
pub async fn a_pod_answers(appliance: &Appliance) -> Result<()> {
    let workload = client(appliance).await?;
    make_the_page(&workload).await?;
    let node = node_of_the_page(&workload).await?;
    anyhow::ensure!(node.starts_with(&format!("{NAME}-general-")), "the pod runs on {node}, which is no worker");
    let claim = Api::<PersistentVolumeClaim>::default_namespaced(workload.clone()).get("page").await?;
    let phase = claim.status.and_then(|status| status.phase);
    anyhow::ensure!(phase.as_deref() == Some("Bound"), "the claim is {phase:?}");
    visit_by_name(&workload).await?;
    let address = visit_by_address(&workload).await?;
    let object = appliance.clusters().await?.get(NAME).await?;
    let given = object.status.unwrap_or_default().load_balancer_addresses;
    anyhow::ensure!(given.contains(&address), "{address} is none of {given:?}");
    println!("    {address} answers from {node}");
    Ok(())
}

async fn make_the_page(workload: &Client) -> Result<()> {
    let labels = json!({"app": "page"});
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "page"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}},
    });
    let page = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "page"},
        "spec": {"selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "page"}}],
                "containers": [{
                    "name": "page", "image": BUSYBOX,
                    "command": ["sh", "-c", "echo kept-in-a-volume >/data/index.html; exec httpd -f -p 8080 -h /data"],
                    "ports": [{"containerPort": 8080}],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    "readinessProbe": {"tcpSocket": {"port": 8080}},
                }],
            },
        }},
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "page"},
        "spec": {"type": "LoadBalancer", "selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    create::<PersistentVolumeClaim>(workload, claim).await?;
    create::<Deployment>(workload, page).await?;
    create::<Service>(workload, service).await
}

async fn create<K>(workload: &Client, object: serde_json::Value) -> Result<()>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let object: K = serde_json::from_value(object)?;
    let kind = K::kind(&()).into_owned();
    Api::<K>::default_namespaced(workload.clone()).create(&PostParams::default(), &object).await.context(kind)?;
    Ok(())
}

async fn node_of_the_page(workload: &Client) -> Result<String> {
    let pods = Api::<Pod>::default_namespaced(workload.clone());
    let pod = eventually("the page's pod", PATIENCE, || async {
        let list = pods.list(&ListParams::default().labels("app=page")).await?.items;
        let ready = |pod: &&Pod| {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
            conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        Ok::<_, kube::Error>(match list.iter().find(ready) {
            Some(pod) => Seen::Done(pod.clone()),
            None => Seen::NotYet(format!("{:?}", list.iter().map(|pod| &pod.status).collect::<Vec<_>>())),
        })
    })
    .await?;
    pod.spec.and_then(|spec| spec.node_name).context("a ready pod without a node")
}

/// From within: DNS, the service's address, the way between pods.
async fn visit_by_name(workload: &Client) -> Result<()> {
    let visit = "wget -T 20 -q -O - http://page.default.svc.cluster.local | grep kept-in-a-volume";
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "visitor"},
        "spec": {"backoffLimit": 20, "template": {"spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "visitor", "image": BUSYBOX, "command": ["sh", "-c", visit]}],
        }}},
    });
    create::<Job>(workload, job).await?;
    let jobs = Api::<Job>::default_namespaced(workload.clone());
    eventually("a visit by the service's name", PATIENCE, || async {
        let status = jobs.get("visitor").await?.status;
        let done = status.as_ref().is_some_and(|status| status.succeeded == Some(1));
        Ok::<_, kube::Error>(Seen::when(done, status))
    })
    .await?;
    Ok(())
}

/// From the host, by the load balancer's address, which it returns.
async fn visit_by_address(workload: &Client) -> Result<String> {
    let services = Api::<Service>::default_namespaced(workload.clone());
    let http = reqwest::Client::builder().no_proxy().build()?;
    let address = eventually("a page from the load balancer's address", PATIENCE, || async {
        let service = services.get("page").await?;
        let ingress = service.status.and_then(|status| status.load_balancer?.ingress?.first()?.ip.clone());
        let Some(address) = ingress else { return Ok(Seen::NotYet("no address".to_owned())) };
        let request = http.get(format!("http://{address}/")).timeout(Duration::from_secs(10));
        let page = request.send().await?.text().await?;
        anyhow::Ok(if page.trim() == "kept-in-a-volume" { Seen::Done(address) } else { Seen::NotYet(page) })
    });
    Ok(address.await?)
}

/// The index of the bundle.
pub fn bundle() -> Result<Index> {
    let index = std::env::var("PCG_EDGE_BUNDLE").context("PCG_EDGE_BUNDLE")? + "/" + INDEX_FILE;
    Ok(serde_json::from_slice(&std::fs::read(index)?)?)
}

/// No image came from elsewhere: each is the bundle's by digest, or was in the guest's image.
pub async fn images_are_the_bundles(appliance: &Appliance) -> Result<()> {
    let index = bundle()?;
    let pods = Api::<Pod>::all(client(appliance).await?).list(&ListParams::default()).await?.items;
    let mut pulled = 0;
    for status in
        pods.iter().flat_map(|pod| pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten()))
    {
        let artifact = index.artifacts.iter().find(|artifact| artifact.registry && artifact.name == status.image);
        // What was in the guest's image has no digest of a registry; nor has what is not pulled yet.
        if let Some((_, digest)) = status.image_id.rsplit_once('@') {
            let expected = artifact.map(|artifact| artifact.digest.as_str());
            anyhow::ensure!(expected == Some(digest), "{}: {}", status.image, status.image_id);
            pulled += 1;
        } else {
            let waits = status.image_id.is_empty() && artifact.is_some();
            let is_the_guests = status.image.starts_with("registry.k8s.io/");
            anyhow::ensure!(waits || is_the_guests, "{} is not the bundle's", status.image);
        }
    }
    anyhow::ensure!(pulled >= 5, "only {pulled} containers run images of the registry");
    println!("    {pulled} containers run images of the appliance's registry");
    Ok(())
}

/// Removes the cluster as a person would, by a command of `edgectl cluster`: nothing of it is left in libvirt, or in
/// the system cluster.
pub async fn gone_without_a_trace(appliance: &Appliance, command: &[&str], before: &Inventory) -> Result<()> {
    appliance.edgectl(&[&["cluster"], command].concat()).await?;
    let difference = before.difference(&Inventory::libvirt()?);
    anyhow::ensure!(difference.is_empty(), "libvirt differs:\n{difference}");
    let client = appliance.client().await?;
    let secrets = Api::<Secret>::namespaced(client.clone(), names::NAMESPACE).list(&ListParams::default()).await?;
    let left: Vec<_> = secrets.items.iter().filter_map(|secret| secret.metadata.name.as_deref()).collect();
    anyhow::ensure!(!left.iter().any(|name| name.starts_with(&format!("{NAME}-"))), "{left:?}");
    for (group, kind, plural) in [
        ("cluster.x-k8s.io", "Machine", "machines"),
        ("cluster.x-k8s.io", "Cluster", "clusters"),
        ("ipam.cluster.x-k8s.io", "IPAddressClaim", "ipaddressclaims"),
        ("ipam.cluster.x-k8s.io", "IPAddress", "ipaddresses"),
    ] {
        let version = kube::core::GroupVersionKind::gvk(group, "v1beta2", kind);
        let resource = kube::core::ApiResource::from_gvk_with_plural(&version, plural);
        let api = Api::<kube::core::DynamicObject>::namespaced_with(client.clone(), names::NAMESPACE, &resource);
        let left: Vec<_> = api.list(&ListParams::default()).await?.items.into_iter().map(|o| o.metadata.name).collect();
        anyhow::ensure!(left.is_empty(), "{plural} are left: {left:?}");
    }
    Ok(())
}
