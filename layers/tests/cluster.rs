//! Layers against a real API server and a real Helm. No controller runs: nobody but us writes, and workloads become
//! healthy only where the test plays their controller.

#![allow(clippy::panic, clippy::unwrap_used, reason = "this is a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use edge_api::agent::{Application, StepState};
use edge_api::names::{ANNOTATION_DIGEST, LABEL_LAYER, NAMESPACE};
use edge_layers::{Context, Failure, Helm, Report, apply};
use edge_profiles::{Content, Digest, LayerKind, RenderedLayer};
use edge_tests::ControlPlane;
use edge_tests::control_plane::programs_dir;
use edge_tests::wait::{Seen, eventually};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

/// A control plane, and what was told while layers were applied to it.
struct Bed {
    plane: ControlPlane,
    ctx: Context,
    helm: Helm,
    told: Mutex<Vec<(String, StepState, String)>>,
    scratch: tempfile::TempDir,
}

impl Bed {
    async fn start() -> Self {
        let plane = ControlPlane::start().await.unwrap();
        let helm = Helm { program: programs_dir().unwrap().join("helm"), kubeconfig: plane.kubeconfig() };
        let ctx = Context { client: plane.client(), helm: Some(helm.clone()) };
        Self { plane, ctx, helm, told: Mutex::default(), scratch: tempfile::tempdir().unwrap() }
    }

    async fn apply(&self, layers: &[RenderedLayer]) -> Result<Report, edge_layers::Error> {
        let told = &self.told;
        let observer = |a: Application| told.lock().unwrap().push((a.name, a.state, a.message));
        apply(&self.ctx, layers, &observer).await
    }

    /// Applies and says what the API server saw being written.
    async fn writes(&self, layers: &[RenderedLayer]) -> (Report, Vec<String>) {
        let mark = self.plane.audit().mark().unwrap();
        let report = self.apply(layers).await.unwrap();
        let writes = self.plane.audit().writes_since(mark, |user| user == edge_tests::control_plane::ADMIN).unwrap();
        (report, writes.into_iter().map(|write| format!("{} {}", write.verb, write.object)).collect())
    }

    fn maps(&self, namespace: &str) -> Api<ConfigMap> {
        Api::namespaced(self.ctx.client.clone(), namespace)
    }

    async fn names(&self, namespace: &str) -> Vec<String> {
        let list = self.maps(namespace).list(&ListParams::default()).await.unwrap();
        list.iter().map(ResourceExt::name_any).filter(|name| name != "kube-root-ca.crt").collect()
    }

    /// A chart of one `ConfigMap` per name in `objects`, and any other templates.
    fn chart(&self, name: &str, objects: &[&str], more: &str) -> PathBuf {
        let dir = self.scratch.path().join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("templates")).unwrap();
        fs::write(dir.join("Chart.yaml"), "apiVersion: v2\nname: sample\nversion: 1.0.0\n").unwrap();
        for object in objects {
            let text = format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {object}\ndata:\n  text: {{{{ .Values.text | quote }}}}\n"
            );
            fs::write(dir.join(format!("templates/{object}.yaml")), text).unwrap();
        }
        fs::write(dir.join("templates/more.yaml"), more).unwrap();
        dir
    }
}

fn layer(name: &str, objects: Vec<Value>) -> RenderedLayer {
    let objects: Vec<_> = objects
        .into_iter()
        .map(|mut object| {
            object["metadata"]["labels"] = json!({LABEL_LAYER: name, "pcg-edge.io/profile": "test"});
            object
        })
        .collect();
    let digest = Digest::of(serde_json::to_string(&objects).unwrap().as_bytes()).to_string();
    rendered(name, LayerKind::Manifest, digest, Content::Objects(objects))
}

fn chart_layer(name: &str, chart_dir: &Path, text: &str) -> RenderedLayer {
    let namespace = "shop".to_owned();
    let mut all = Vec::new();
    let mut files: Vec<_> = fs::read_dir(chart_dir.join("templates")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    for file in files {
        all.extend(fs::read(file).unwrap());
    }
    all.extend(text.as_bytes());
    let values = json!({"text": text});
    let content = Content::Chart { chart_dir: chart_dir.to_owned(), release: name.to_owned(), namespace, values };
    rendered(name, LayerKind::Chart, Digest::of(&all).to_string(), content)
}

fn rendered(name: &str, kind: LayerKind, digest: String, content: Content) -> RenderedLayer {
    RenderedLayer {
        name: name.to_owned(),
        profile: "test".to_owned(),
        kind,
        version: None,
        namespace: "default".to_owned(),
        timeout: Duration::from_secs(30),
        digest,
        content,
    }
}

fn map(name: &str, text: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"text": text}})
}

fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i",
            // Stored by the server as "1" and "1Gi": not what we wrote, and no drift.
            "resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}}}]}},
    }})
}

async fn make_available(client: &Client, name: &str) {
    let api: Api<Deployment> = Api::namespaced(client.clone(), "default");
    eventually("the Deployment", Duration::from_secs(30), || async {
        api.get_opt(name).await.map(|found| Seen::when(found.is_some(), name))
    })
    .await
    .unwrap();
    let status = json!({"status": {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1,
        "availableReplicas": 1}});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_written_once_changed_alone_and_pruned() {
    let bed = Bed::start().await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    let first = layer("first", vec![map("a", "1"), map("b", "1"), namespace]);
    let second = layer("second", vec![map("c", "1")]);
    let report = bed.apply(&[first.clone(), second.clone()]).await.unwrap();
    assert_eq!(report.written, ["Namespace shop", "ConfigMap default/a", "ConfigMap default/b", "ConfigMap default/c"]);
    let a = bed.maps("default").get("a").await.unwrap();
    assert_eq!(a.labels()[LABEL_LAYER], "first");
    assert!(a.annotations()[ANNOTATION_DIGEST].starts_with("sha256:"));

    let (report, writes) = bed.writes(&[first.clone(), second.clone()]).await;
    assert_eq!((report, writes), (Report::default(), Vec::<String>::new()), "a second pass writes");

    let changed = layer("second", vec![map("c", "2")]);
    let (report, writes) = bed.writes(&[first.clone(), changed.clone()]).await;
    assert_eq!(report.written, ["ConfigMap default/c"]);
    assert!(
        !writes.is_empty() && writes.iter().all(|w| w.contains("default/c") || w.contains("/layer-second")),
        "{writes:?}"
    );

    // One object less in a layer, one layer less in the profile; what is not ours stays.
    bed.maps("default")
        .create(&PostParams::default(), &serde_json::from_value(map("foreign", "x")).unwrap())
        .await
        .unwrap();
    let smaller = layer("first", vec![map("a", "1")]);
    let report = bed.apply(&[smaller.clone(), changed.clone()]).await.unwrap();
    assert_eq!(report.pruned, ["ConfigMap default/b", "Namespace shop"]);
    let report = bed.apply(std::slice::from_ref(&smaller)).await.unwrap();
    assert_eq!(report.pruned, ["ConfigMap default/c"]);
    assert_eq!(bed.names("default").await, ["a", "foreign"]);
    assert_eq!(bed.names(NAMESPACE).await, ["layer-first"]);

    // Nothing at all is no profile.
    let error = bed.apply(&[]).await.unwrap_err();
    assert!(matches!(error.failure, Failure::NoLayers));
    assert_eq!(bed.names("default").await, ["a", "foreign"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_put_right_and_nothing_else_is() {
    let bed = Bed::start().await;
    let layers = [layer("only", vec![map("a", "1")])];
    bed.apply(&layers).await.unwrap();
    let maps = bed.maps("default");
    // Somebody adds what is theirs: no reason to write.
    let theirs = json!({"metadata": {"annotations": {"note": "mine"}}, "data": {"other": "x"}});
    maps.patch("a", &PatchParams::default(), &Patch::Merge(&theirs)).await.unwrap();
    let (report, writes) = bed.writes(&layers).await;
    assert_eq!((report, writes), (Report::default(), Vec::<String>::new()));
    // Somebody changes what is ours.
    maps.patch("a", &PatchParams::default(), &Patch::Merge(&json!({"data": {"text": "2"}}))).await.unwrap();
    assert_eq!(bed.apply(&layers).await.unwrap().written, ["ConfigMap default/a"]);
    let data = maps.get("a").await.unwrap().data.unwrap();
    assert_eq!(data, BTreeMap::from([("other".into(), "x".into()), ("text".into(), "1".into())]));
    // Somebody removes it.
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(bed.apply(&layers).await.unwrap().written, ["ConfigMap default/a"]);
    let (report, _) = bed.writes(&layers).await;
    assert_eq!(report, Report::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_wait_for_the_health_of_earlier_ones() {
    let bed = Bed::start().await;
    let mut first = layer("first", vec![deployment("web")]);
    first.timeout = Duration::from_secs(2);
    let layers = [first, layer("second", vec![map("after", "1")])];
    let error = bed.apply(&layers).await.unwrap_err();
    assert_eq!(error.layer, "first");
    let text = error.failure.to_string();
    assert_eq!(text, "not healthy after 2 s: Deployment default/web: has not been looked at by its controller");
    assert!(bed.names("default").await.is_empty(), "the second layer came too early");
    let told = std::mem::take(&mut *bed.told.lock().unwrap());
    let states: Vec<_> = told.iter().map(|(name, state, _)| (name.as_str(), *state)).collect();
    assert_eq!(states, [("first", StepState::Running), ("first", StepState::Waiting), ("first", StepState::Failed)]);

    let mut layers = layers;
    layers[0].timeout = Duration::from_mins(1);
    let (result, ()) = tokio::join!(bed.apply(&layers), make_available(&bed.ctx.client, "web"));
    result.unwrap();
    assert_eq!(bed.names("default").await, ["after"]);
    let (report, writes) = bed.writes(&layers).await;
    assert_eq!((report, writes), (Report::default(), Vec::<String>::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_ours_is_not_touched() {
    let bed = Bed::start().await;
    let maps = bed.maps("default");
    let foreign =
        maps.create(&PostParams::default(), &serde_json::from_value(map("a", "theirs")).unwrap()).await.unwrap();
    let error = bed.apply(&[layer("only", vec![map("a", "ours")])]).await.unwrap_err();
    assert!(matches!(error.failure, Failure::NotOurs { .. }), "{error:?}");
    assert_eq!(maps.get("a").await.unwrap().resource_version(), foreign.resource_version());
    // It was written down as ours-to-be; without its mark it is not pruned either.
    bed.apply(&[layer("only", vec![map("b", "1")])]).await.unwrap();
    assert_eq!(bed.names("default").await, ["a", "b"]);
    assert_eq!(maps.get("a").await.unwrap().resource_version(), foreign.resource_version());
    // An object that lost its mark is nobody's.
    let unmark = json!({"metadata": {"labels": {LABEL_LAYER: null}}});
    maps.patch("b", &PatchParams::default(), &Patch::Merge(&unmark)).await.unwrap();
    bed.apply(&[layer("other", vec![map("c", "1")])]).await.unwrap();
    assert_eq!(bed.names("default").await, ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_may_bring_a_kind_and_objects_may_change_layers() {
    let bed = Bed::start().await;
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Cluster",
        "names": {"plural": "things", "kind": "Thing"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"size": {"type": "integer"}}}}}]}});
    let thing = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "one"}, "size": 1});
    let with = |name: &str, more: Value| layer(name, vec![thing.clone(), crd.clone(), more]);
    let layers = [with("kinds", map("a", "1")), layer("rest", vec![map("b", "1")])];
    bed.apply(&layers).await.unwrap();
    let (report, writes) = bed.writes(&layers).await;
    assert_eq!((report, writes), (Report::default(), Vec::<String>::new()));
    // `a` moves to a later layer: it is relabelled, never removed.
    let uid = bed.maps("default").get("a").await.unwrap().uid();
    let moved = [layer("kinds", vec![thing.clone(), crd.clone()]), layer("rest", vec![map("b", "1"), map("a", "1")])];
    let report = bed.apply(&moved).await.unwrap();
    assert_eq!((report.written, report.pruned), (vec!["ConfigMap default/a".to_owned()], vec![]));
    assert_eq!(bed.maps("default").get("a").await.unwrap().uid(), uid);
    // A field that the kind does not have is an error, not dropped.
    let mut wrong = thing.clone();
    wrong["colour"] = "red".into();
    let error = bed.apply(&[layer("kinds", vec![crd.clone(), wrong])]).await.unwrap_err();
    assert!(error.failure.to_string().contains("colour"), "{}", error.failure);
    // The kind and its objects go together.
    let report = bed.apply(&[layer("rest", vec![map("b", "1")])]).await.unwrap();
    assert!(report.pruned.contains(&"CustomResourceDefinition things.example.com".to_owned()), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn releases_are_upgraded_only_for_a_reason_and_pruned() {
    let bed = Bed::start().await;
    let chart = bed.chart("web", &["one", "two"], "");
    let layers = [chart_layer("web", &chart, "hello"), layer("rest", vec![map("a", "1")])];
    let report = bed.apply(&layers).await.unwrap();
    assert_eq!(report.written, ["Release shop/web", "ConfigMap default/a"]);
    assert_eq!(bed.names("shop").await, ["one", "two"]);
    let (report, writes) = bed.writes(&layers).await;
    assert_eq!((report, writes), (Report::default(), Vec::<String>::new()), "a second pass writes");

    // A value changes; an object is lost; a template goes.
    let changed = chart_layer("web", &chart, "good day");
    assert_eq!(bed.apply(&[changed.clone(), layers[1].clone()]).await.unwrap().written, ["Release shop/web"]);
    assert_eq!(bed.maps("shop").get("one").await.unwrap().data.unwrap()["text"], "good day");
    bed.maps("shop").delete("one", &DeleteParams::default()).await.unwrap();
    assert_eq!(bed.apply(&[changed, layers[1].clone()]).await.unwrap().written, ["Release shop/web"]);
    assert_eq!(bed.names("shop").await, ["one", "two"]);
    let chart = bed.chart("web", &["two"], "");
    bed.apply(&[chart_layer("web", &chart, "good day"), layers[1].clone()]).await.unwrap();
    assert_eq!(bed.names("shop").await, ["two"]);

    // A broken chart: Helm's own words, and the layer's.
    let broken = bed.chart("broken", &["two"], "{{ fail \"no such luck\" }}");
    let error = bed.apply(&[chart_layer("web", &broken, "x"), layers[1].clone()]).await.unwrap_err();
    assert!(error.failure.to_string().contains("no such luck"), "{}", error.failure);

    // The chart's layer becomes a manifest, then goes.
    let report = bed.apply(&[layer("web", vec![map("a2", "1")]), layers[1].clone()]).await.unwrap();
    assert_eq!(report.pruned, ["Release shop/web"]);
    assert!(bed.names("shop").await.is_empty());
    let chart = bed.chart("web", &["one"], "");
    bed.apply(&[chart_layer("web", &chart, "x"), layers[1].clone()]).await.unwrap();
    let report = bed.apply(&layers[1..]).await.unwrap();
    assert_eq!(report.pruned, ["Release shop/web"]);
    assert!(bed.names("shop").await.is_empty());
    assert_eq!(bed.names(NAMESPACE).await, ["layer-rest"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_do_not_reach_the_argument_list_and_releases_of_others_stay() {
    let bed = Bed::start().await;
    let chart = bed.chart("web", &["one"], "");
    // A program that stands in for Helm, to see what it is given.
    let spy = bed.scratch.path().join("spy");
    let seen = bed.scratch.path().join("seen");
    fs::write(
        &spy,
        format!(
            "#!/bin/sh\necho \"$@\" >{0}\ncat >{0}.stdin\necho out; echo 'told you so' >&2; exit 3\n",
            seen.display()
        ),
    )
    .unwrap();
    fs::set_permissions(&spy, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut ctx = bed.ctx.clone();
    ctx.helm = Some(Helm { program: spy, ..bed.helm.clone() });
    let layers = [chart_layer("web", &chart, "hunter2")];
    let error = apply(&ctx, &layers, &|_| {}).await.unwrap_err();
    assert_eq!(error.failure.to_string(), "helm: upgrade of release web failed: told you so");
    let arguments = fs::read_to_string(&seen).unwrap();
    assert!(arguments.starts_with("upgrade web ") && !arguments.contains("hunter2"), "{arguments}");
    assert!(fs::read_to_string(seen.with_extension("stdin")).unwrap().contains("hunter2"));

    let others = tokio::process::Command::new(&bed.helm.program)
        .args(["install", "web", "--namespace", "shop", "--create-namespace", "--kubeconfig"])
        .arg(&bed.helm.kubeconfig)
        .arg(&chart)
        .output()
        .await
        .unwrap();
    assert!(others.status.success(), "{others:?}");
    let error = bed.apply(&layers).await.unwrap_err();
    assert!(matches!(error.failure, Failure::ReleaseNotOurs { .. }), "{}", error.failure);
    bed.apply(&[layer("rest", vec![map("a", "1")])]).await.unwrap();
    assert_eq!(bed.names("shop").await, ["one"]);
}

/// Helm is killed while a hook holds it up: once in an installation, once in an upgrade.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_was_left_unfinished_is_recovered() {
    let bed = Bed::start().await;
    let hook = "apiVersion: batch/v1\nkind: Job\nmetadata:\n  name: hook\n  annotations:\n    helm.sh/hook: EVENT\n    \
                helm.sh/hook-delete-policy: before-hook-creation\nspec:\n  template:\n    spec:\n      restartPolicy: Never\n      \
                containers: [{name: c, image: i}]\n";
    for (event, status) in [("post-install", "pending-install"), ("post-upgrade", "pending-upgrade")] {
        let stuck = bed.chart("stuck", &["one", event], &hook.replace("EVENT", event));
        let mut layers = [chart_layer("web", &stuck, status)];
        layers[0].timeout = Duration::from_mins(10);
        {
            // Dropped as soon as Helm has said that it is at work: Helm is killed with it.
            let pass = bed.apply(&layers);
            let secrets: Api<Secret> = Api::namespaced(bed.ctx.client.clone(), "shop");
            let labels = format!("owner=helm,name=web,status={status}");
            let at_work = eventually("Helm at work", Duration::from_mins(1), || async {
                let jobs: Api<k8s_openapi::api::batch::v1::Job> = Api::namespaced(bed.ctx.client.clone(), "shop");
                let records = secrets.list(&ListParams::default().labels(&labels)).await?;
                let hook = jobs.get_opt("hook").await?;
                Ok::<_, kube::Error>(Seen::when(records.items.len() == 1 && hook.is_some(), records.items.len()))
            });
            tokio::select! {
                result = pass => panic!("the pass ended: {result:?}"),
                result = at_work => result.unwrap(),
            };
        }
        let good = bed.chart("good", &["one"], "");
        let layers = [chart_layer("web", &good, status)];
        assert_eq!(bed.apply(&layers).await.unwrap().written, ["Release shop/web"]);
        // What only the unfinished revision had is gone, what both have was adopted.
        assert_eq!(bed.names("shop").await, ["one"], "after {status}");
        assert_eq!(bed.maps("shop").get("one").await.unwrap().data.unwrap()["text"], *status);
        let (report, writes) = bed.writes(&layers).await;
        assert_eq!((report, writes), (Report::default(), Vec::<String>::new()));
    }
    let namespaces: Api<Namespace> = Api::all(bed.ctx.client.clone());
    assert!(namespaces.get_opt("shop").await.unwrap().is_some());
}

/// The webhook of what a layer brings does not answer before its pods run.
#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_does_not_answer_yet_is_waited_for() {
    let bed = Bed::start().await;
    let hook = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
    "metadata": {"name": "maps"}, "webhooks": [{
        "name": "maps.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 1,
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"]}],
    }]});
    bed.apply(&[layer("hook", vec![hook.clone()])]).await.unwrap();
    let layers = [layer("hook", vec![hook]), layer("shop", vec![map("a", "1")])];
    let pass = bed.apply(&layers);
    let told = async {
        eventually("a wait for the webhook", Duration::from_mins(1), || async {
            let told = bed.told.lock().unwrap().clone();
            let seen = told.iter().any(|(name, state, message)| {
                name == "shop"
                    && *state == StepState::Waiting
                    && message.contains("failed calling webhook \"maps.example.com\"")
            });
            Ok::<_, kube::Error>(Seen::when(seen, told))
        })
        .await
        .unwrap();
        let hooks: Api<ValidatingWebhookConfiguration> = Api::all(bed.ctx.client.clone());
        // Which is all that matters of a webhook that agrees.
        hooks.delete("maps", &DeleteParams::default()).await.unwrap();
    };
    let (report, ()) = tokio::join!(pass, told);
    assert_eq!(report.unwrap().written, ["ConfigMap default/a"]);

    // One that never answers is named when the time is over.
    let mut layers = layers;
    layers[1] = layer("shop", vec![map("a", "2")]);
    layers[1].timeout = Duration::from_secs(1);
    let error = bed.apply(&layers).await.unwrap_err();
    assert!(
        matches!(&error.failure, Failure::Unhealthy { waited_for, .. } if waited_for.contains("maps.example.com")),
        "{error:?}"
    );
    assert_eq!(bed.maps("default").get("a").await.unwrap().data.unwrap()["text"], "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chart_needs_helm() {
    let bed = Bed::start().await;
    let ctx = Context { helm: None, ..bed.ctx.clone() };
    let chart = bed.chart("web", &["one"], "");
    let error = apply(&ctx, &[chart_layer("web", &chart, "x")], &|_| {}).await.unwrap_err();
    assert!(matches!(error.failure, Failure::NoHelm), "{error:?}");
    assert!(bed.names(NAMESPACE).await.is_empty(), "something was written down");
}
