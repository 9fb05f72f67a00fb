//! Law 1, request by request: a pass that ends before or after any of its requests to the API server is made good by
//! the next one, also when the profile has changed in between.

#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use edge_api::names::{LABEL_LAYER, NAMESPACE};
use edge_layers::{Context, Report, apply};
use edge_profiles::{Content, Digest, LayerKind, RenderedLayer};
use edge_tests::ControlPlane;
use hyper::Request;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams};
use kube::client::Body;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::Notify;

/// Where a pass ends.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// The request is never sent.
    Before(usize),
    /// The request is carried out, and the answer never seen.
    After(usize),
}

/// A client that stops for good at one of its requests, and says so.
fn cut_client(inner: Client, cut: Cut) -> (Client, Arc<Notify>) {
    let reached = Arc::new(Notify::new());
    let count = Arc::new(AtomicUsize::new(0));
    let tell = reached.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (inner, tell, number) = (inner.clone(), tell.clone(), count.fetch_add(1, Ordering::SeqCst));
        async move {
            let stop = || async {
                tell.notify_one();
                std::future::pending::<()>().await;
            };
            if matches!(cut, Cut::Before(n) if n == number) {
                stop().await;
            }
            let answer = inner.send(request).await;
            if matches!(cut, Cut::After(n) if n == number) {
                stop().await;
            }
            answer
        }
    });
    (Client::new(service, "default"), reached)
}

fn layer(name: &str, text: &str, objects: &[&str]) -> RenderedLayer {
    let object = |object: &&str| -> Value {
        let labels = json!({LABEL_LAYER: name, "pcg-edge.io/profile": "test"});
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": object, "labels": labels}, "data": {"text": text}})
    };
    let objects: Vec<_> = objects.iter().map(object).collect();
    RenderedLayer {
        name: name.to_owned(),
        profile: "test".to_owned(),
        kind: LayerKind::Manifest,
        version: None,
        namespace: "default".to_owned(),
        timeout: Duration::from_secs(30),
        digest: Digest::of(text.as_bytes()).to_string(),
        content: Content::Objects(objects),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_may_be_the_last() {
    let plane = ControlPlane::start().await.unwrap();
    let whole = Context { client: plane.client(), helm: None };
    let first = [layer("a", "1", &["a1", "a2", "moves"]), layer("b", "1", &["b1"]), layer("gone", "1", &["g1", "g2"])];
    // Changed, new, moved, lost objects; a new layer; a vanished one.
    let second =
        [layer("b", "2", &["b1", "b2", "moves"]), layer("new", "2", &["n1", "n2"]), layer("a", "2", &["a1", "a3"])];
    let third = [layer("third", "3", &["t1"]), layer("a", "1", &["a2"])];
    let expect = [
        (&first[..], vec!["a1", "a2", "b1", "g1", "g2", "moves"]),
        (&second[..], vec!["a1", "a3", "b1", "b2", "moves", "n1", "n2"]),
        (&third[..], vec!["a2", "t1"]),
    ];
    let objects = || async {
        let list = Api::<ConfigMap>::namespaced(plane.client(), "default").list(&ListParams::default()).await.unwrap();
        list.iter().map(ResourceExt::name_any).filter(|name| name != "kube-root-ca.crt").collect::<Vec<_>>()
    };
    let inventories = || async {
        Api::<ConfigMap>::namespaced(plane.client(), NAMESPACE).list(&ListParams::default()).await.unwrap().items.len()
    };
    for cut in [Cut::Before as fn(usize) -> Cut, Cut::After] {
        for number in 0.. {
            let cut = cut(number);
            let mut cuts = 0;
            // The same profile again, or another one, after the cut.
            for (then, names) in &expect[1..] {
                apply(&whole, expect[0].0, &|_| {}).await.unwrap();
                assert_eq!(objects().await, expect[0].1, "before {cut:?}");
                let (client, reached) = cut_client(plane.client(), cut);
                let context = Context { client, helm: None };
                tokio::select! {
                    result = apply(&context, expect[1].0, &|_| {}) => drop(result.unwrap()),
                    () = reached.notified() => cuts += 1,
                }
                apply(&whole, then, &|_| {}).await.unwrap();
                assert_eq!(objects().await, *names, "after {cut:?}");
                assert_eq!(inventories().await, then.len(), "after {cut:?}");
                assert_eq!(apply(&whole, then, &|_| {}).await.unwrap(), Report::default(), "after {cut:?}");
            }
            if cuts == 0 {
                assert!(number > 20, "a pass of {number} requests is too short to tell anything");
                break;
            }
        }
    }
}
