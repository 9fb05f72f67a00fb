//! The example's profile against a real API server with our CRDs: what is rendered is valid, and a second pass writes
//! nothing. The test plays the controllers that would make workloads available and machines ready.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is a test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use edge_api::agent::{Application, StepState};
use edge_api::names::NAMESPACE;
use edge_api::{IPPool, VirtualMachine, VirtualMachineImage};
use edge_layers::{Context, Helm, Report, apply};
use edge_profiles::{
    Limits, RenderContext, RenderedLayer, SiteProperties, build_archive, load, publish_archive, render,
};
use edge_tests::ControlPlane;
use edge_tests::control_plane::programs_dir;
use edge_tests::wait::{Seen, eventually};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, NamespaceResourceScope};
use kube::{Client, Resource, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::mpsc;

fn rendered(scratch: &Path, dhcp_end: &str) -> Vec<RenderedLayer> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/site/profile");
    let archive = scratch.join("profile.tar");
    build_archive(&source, &archive).unwrap();
    let published = publish_archive(&archive, &scratch.join("store"), &Limits::default()).unwrap();
    let some = |text: &str| Some(text.to_owned());
    let site = SiteProperties {
        device_id: "store-1".to_owned(),
        instance: "edge".to_owned(),
        lan_cidr: some("192.168.200.1/24"),
        wan_cidr: some("192.168.150.2/24"),
        wan_gateway: some("192.168.150.1"),
        dhcp_start: some("192.168.200.100"),
        dhcp_end: some(dhcp_end),
        ..SiteProperties::default()
    };
    let image = |name: &str, digit: &str| (name.to_owned(), format!("sha256:{}", digit.repeat(64)));
    let ctx = RenderContext {
        site,
        appliance_id: edge_api::instance::derive("test"),
        namespace: NAMESPACE.to_owned(),
        images: BTreeMap::from([image("pcg-edge.io/vm/router:1", "a"), image("pcg-edge.io/vm/tiny:1", "b")]),
    };
    render(&load(&published.dir).unwrap(), &ctx).unwrap()
}

/// Waits for an object and says in its status that all is well with its present generation.
async fn make_ready<K>(client: Client, namespace: &str, name: &str)
where
    K: Resource<Scope = NamespaceResourceScope>,
    K::DynamicType: Default,
{
    let resource = ApiResource::erase::<K>(&K::DynamicType::default());
    let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, &resource);
    let object = eventually(&format!("{} {name}", resource.kind), Duration::from_mins(1), || async {
        let found = api.get_opt(name).await?;
        Ok::<_, kube::Error>(found.map_or_else(|| Seen::NotYet("nothing".to_owned()), Seen::Done))
    })
    .await
    .unwrap();
    let generation = object.metadata.generation;
    let status = if resource.kind == "Deployment" {
        json!({"observedGeneration": generation, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1})
    } else {
        json!({"observedGeneration": generation, "conditions": [
            condition("Ready", true, generation), condition("ConfigCurrent", true, generation),
        ]})
    };
    let patch = Patch::Merge(json!({"status": status}));
    api.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
}

fn condition(name: &str, holds: bool, generation: Option<i64>) -> Value {
    json!({"type": name, "status": if holds { "True" } else { "False" }, "reason": if holds { "AsAsked" } else { "Due" },
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": generation})
}

/// Names of the Secrets in our namespace.
async fn secrets(client: &Client) -> Vec<String> {
    let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let all = api.list(&ListParams::default()).await.unwrap();
    all.iter().filter(|s| s.type_.as_deref() == Some("pcg-edge.io/guest-files")).map(ResourceExt::name_any).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_is_applied_and_followed() {
    let plane = ControlPlane::start().await.unwrap();
    plane.install_crds().await.unwrap();
    let client = plane.client();
    let helm = Helm { program: programs_dir().unwrap().join("helm"), kubeconfig: plane.kubeconfig() };
    let ctx = Context { client: client.clone(), helm: Some(helm) };
    let scratch = tempfile::tempdir().unwrap();

    let layers = rendered(scratch.path(), "192.168.200.150");
    let controllers = async {
        make_ready::<Deployment>(client.clone(), "web", "web").await;
        make_ready::<IPPool>(client.clone(), NAMESPACE, "nodes").await;
        make_ready::<VirtualMachineImage>(client.clone(), NAMESPACE, "router-aaaaaaaaaaaa").await;
        make_ready::<VirtualMachine>(client.clone(), NAMESPACE, "router").await;
        make_ready::<VirtualMachineImage>(client.clone(), NAMESPACE, "tiny-bbbbbbbbbbbb").await;
        make_ready::<VirtualMachine>(client.clone(), NAMESPACE, "client").await;
    };
    let observer = |_| {};
    let (result, ()) = tokio::join!(apply(&ctx, &layers, &observer), controllers);
    let [files] = &secrets(&client).await[..] else { panic!("one Secret") };
    assert_eq!(
        result.unwrap().written,
        [
            "Release web/web",
            "ConfigMap default/site-info",
            "IPPool pcg-edge-system/nodes",
            "VirtualMachineImage pcg-edge-system/router-aaaaaaaaaaaa",
            &format!("Secret pcg-edge-system/{files}"),
            "VirtualMachine pcg-edge-system/router",
            "VirtualMachineImage pcg-edge-system/tiny-bbbbbbbbbbbb",
            "VirtualMachine pcg-edge-system/client",
        ]
    );
    let mark = plane.audit().mark().unwrap();
    assert_eq!(apply(&ctx, &layers, &observer).await.unwrap(), Report::default());
    assert_eq!(plane.audit().writes_since(mark, |_| true).unwrap(), []);

    // a new range reaches the router's files and the router, and not the client.
    let vms: Api<VirtualMachine> = Api::namespaced(client.clone(), NAMESPACE);
    let tiny = vms.get("client").await.unwrap();
    let (tell, mut told) = mpsc::unbounded_channel();
    let observer = move |application: Application| drop(tell.send(application));
    let edited = rendered(scratch.path(), "192.168.200.180");
    let operator = async {
        let mut waits_for = async |missing: &str| {
            let waits = async {
                loop {
                    let application: Application = told.recv().await.unwrap();
                    assert!(
                        (&*application.name, application.state) != ("router", StepState::Ready),
                        "before {missing}"
                    );
                    if application.name == "router" && application.message.ends_with(missing) {
                        return;
                    }
                }
            };
            tokio::time::timeout(Duration::from_mins(1), waits).await.unwrap_or_else(|_| panic!("{missing}"));
        };
        // What it said of the old files is of no account.
        waits_for("its newest change has not been looked at").await;
        assert_eq!(secrets(&client).await.len(), 2, "the guest that still runs has its own");
        let say = async |current: bool| {
            let generation = vms.get("router").await.unwrap().metadata.generation;
            let conditions = [condition("Ready", true, generation), condition("ConfigCurrent", current, generation)];
            let patch = Patch::Merge(json!({"status": {"observedGeneration": generation, "conditions": conditions}}));
            vms.patch_status("router", &PatchParams::default(), &patch).await.unwrap();
        };
        say(false).await;
        waits_for("VirtualMachine pcg-edge-system/router: Due").await;
        say(true).await;
    };
    let (report, ()) = tokio::join!(apply(&ctx, &edited, &observer), operator);
    let report = report.unwrap();
    let [new_files] = &secrets(&client).await[..] else { panic!("one Secret") };
    let secret = format!("Secret pcg-edge-system/{new_files}");
    assert_eq!(report.written, ["ConfigMap default/site-info", &secret, "VirtualMachine pcg-edge-system/router"]);
    assert_eq!(report.pruned, [format!("Secret pcg-edge-system/{files}")]);
    assert_eq!(vms.get("client").await.unwrap().resource_version(), tiny.resource_version());
    let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let config = api.get(new_files).await.unwrap().data.unwrap().remove("config.xml").unwrap();
    assert!(String::from_utf8(config.0).unwrap().contains("<end>192.168.200.180</end>"));
}
