//! The test control plane itself: it serves our kinds, keeps an audit log, tells users apart, and leaves no process.

use std::path::Path;

use edge_tests::ControlPlane;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ListParams, ObjectMeta, PostParams};

#[tokio::test]
async fn serves_our_kinds_and_leaves_nothing() {
    let plane = ControlPlane::start().await.unwrap();
    plane.install_crds().await.unwrap();
    let machines = Api::<edge_api::VirtualMachine>::all(plane.client()).list(&ListParams::default()).await.unwrap();
    assert!(machines.items.is_empty());

    let from = plane.audit().mark().unwrap();
    let named = |name: &str| ConfigMap {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        ..ConfigMap::default()
    };
    let create = |client, name: &'static str| async move {
        Api::<ConfigMap>::namespaced(client, "default").create(&PostParams::default(), &named(name)).await
    };
    create(plane.client(), "one").await.unwrap();
    let stranger = plane.client_as("stranger", &["system:authenticated"]).unwrap();
    let refused = create(stranger, "two").await.unwrap_err();
    assert!(refused.to_string().contains("forbidden"), "{refused}");

    let writes = plane.audit().writes_since(from, |user| user == "stranger").unwrap();
    assert_eq!(writes.len(), 1, "{writes:?}");
    // The name of a refused creation stands in the body only, which is not logged.
    assert_eq!((writes[0].code, writes[0].object.as_str()), (403, "core/configmaps default/"));
    let all = plane.audit().writes_since(from, |_| true).unwrap();
    assert!(all.iter().any(|w| w.object == "core/configmaps default/one" && w.code == 201), "{all:?}");

    let pids = plane.pids().to_vec();
    assert_eq!(pids.len(), 2);
    drop(plane);
    for pid in pids {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is still there");
    }
}
