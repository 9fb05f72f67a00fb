//! The pause of a Cluster, which its `EdgeCluster` follows and takes along when `clusterctl` moves it to another API
//! server.
//!
//! A move pauses the Cluster, copies owners before what they own, and deletes in the opposite order. An `EdgeCluster`
//! that went on meanwhile would make a second Cluster, there before the first has arrived and here when it is gone. So
//! it asks for time before it is moved until it is paused, and stays paused until there is a Cluster that is not.

use edge_api::EdgeCluster;
use edge_api::cluster_api::{ANNOTATION_BLOCK_MOVE, ANNOTATION_PAUSED};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::cluster_api::pause::{annotate, change};
use crate::cluster_api::provider::{Provider, is_paused};
use crate::cluster_api::upstream::Cluster;
use crate::reconcile::Error;

/// Value of the annotation that is put on here.
const MARK: &str = "Cluster";

/// Whether a cluster is to be left alone. Writes what says so, where that differs.
pub async fn follow(edge: &EdgeCluster, cluster: Option<&Cluster>, provider: &Provider) -> Result<bool, Error> {
    let (paused, annotations) = look(edge, cluster);
    if let Some(annotations) = annotations {
        annotate(&provider.context, edge, annotations).await?;
    }
    Ok(paused)
}

fn look(edge: &EdgeCluster, cluster: Option<&Cluster>) -> (bool, Option<Value>) {
    let was_paused = edge.annotations().contains_key(ANNOTATION_PAUSED);
    // Without its Cluster it stays as it is.
    let wanted = cluster.map_or(was_paused, |cluster| is_paused(Some(cluster), &ObjectMeta::default()));
    let change = change(edge, wanted, MARK);
    let paused = change.as_ref().map_or(was_paused, |value| !value.is_null());
    let blocks = edge.annotations().contains_key(ANNOTATION_BLOCK_MOVE);
    let mut annotations = serde_json::Map::new();
    annotations.extend(change.map(|value| (ANNOTATION_PAUSED.to_owned(), value)));
    if blocks == paused {
        let value = if paused { Value::Null } else { json!("") };
        annotations.insert(ANNOTATION_BLOCK_MOVE.to_owned(), value);
    }
    (paused, (!annotations.is_empty()).then_some(Value::Object(annotations)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(annotations: &Value) -> EdgeCluster {
        let spec = json!({
            "profile": "edge", "virtualIP": "10.0.0.1", "placements": [],
            "controlPlane": { "size": 1, "hardware": { "vcpus": 2, "memoryMiB": 2048, "rootDiskGiB": 12 } },
        });
        serde_json::from_value(json!({
            "apiVersion": "pcg-edge.io/v1alpha1", "kind": "EdgeCluster", "spec": spec,
            "metadata": { "name": "shop", "annotations": annotations },
        }))
        .unwrap()
    }

    fn cluster(paused: bool) -> Cluster {
        let spec = json!({ "paused": paused });
        let object = json!({ "metadata": {}, "spec": spec });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn it_follows_its_cluster() {
        let [going, paused] = [json!({ ANNOTATION_BLOCK_MOVE: "" }), json!({ ANNOTATION_PAUSED: MARK })];
        let pause = json!({ ANNOTATION_PAUSED: MARK, ANNOTATION_BLOCK_MOVE: null });
        let go_on = json!({ ANNOTATION_PAUSED: null, ANNOTATION_BLOCK_MOVE: "" });
        assert_eq!(look(&edge(&json!({})), None), (false, Some(json!({ ANNOTATION_BLOCK_MOVE: "" }))));
        assert_eq!(look(&edge(&going), None), (false, None));
        assert_eq!(look(&edge(&going), Some(&cluster(false))), (false, None));
        assert_eq!(look(&edge(&going), Some(&cluster(true))), (true, Some(pause)));
        assert_eq!(look(&edge(&paused), Some(&cluster(true))), (true, None));
        assert_eq!(look(&edge(&paused), None), (true, None), "gone, or not arrived yet");
        assert_eq!(look(&edge(&paused), Some(&cluster(false))), (false, Some(go_on)));
    }

    #[test]
    fn a_persons_pause_stays() {
        let by_hand = json!({ ANNOTATION_PAUSED: "" });
        for cluster in [None, Some(cluster(false)), Some(cluster(true))] {
            assert_eq!(look(&edge(&by_hand), cluster.as_ref()), (true, None));
        }
        let blocking = json!({ ANNOTATION_PAUSED: "", ANNOTATION_BLOCK_MOVE: "" });
        assert_eq!(look(&edge(&blocking), None), (true, Some(json!({ ANNOTATION_BLOCK_MOVE: null }))));
    }
}
