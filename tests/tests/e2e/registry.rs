//! The local registry, and that the cluster really uses it.

use anyhow::{Context, Result};
use edge_api::{bundle, names};
use edge_tests::wait::{Seen, eventually};
use k8s_openapi::api::core::v1::{Event, Pod, Secret};
use kube::Api;
use kube::api::ListParams;
use reqwest::{Certificate, Client, Method, StatusCode};

use crate::PATIENCE;
use crate::appliance::Appliance;

const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                         application/vnd.docker.distribution.manifest.v2+json";

/// 401 without a login; with the pull login everything of the bundle, and no push.
pub async fn check(appliance: &Appliance) -> Result<()> {
    let secrets = Api::<Secret>::namespaced(appliance.client().await?, names::NAMESPACE);
    let data = secrets.get(names::REGISTRY_PULL_SECRET).await?.data.unwrap_or_default();
    let value = |key: &str| {
        let bytes = data.get(key).with_context(|| format!("{} has no {key}", names::REGISTRY_PULL_SECRET))?;
        Ok::<_, anyhow::Error>(String::from_utf8(bytes.0.clone())?)
    };
    let (user, password) = (value("username")?, value("password")?);
    anyhow::ensure!(user == names::REGISTRY_PULL_USER, "the pull login is {user}");
    let authority = Certificate::from_pem(value("ca.crt")?.as_bytes())?;
    let http = Client::builder().tls_certs_only([authority]).no_proxy().build()?;
    let base = format!("https://127.0.0.1:{}/v2", appliance.instance.registry_port());
    let ask = async |method: Method, path: &str, password: Option<&str>| {
        let request = http.request(method, format!("{base}/{path}")).header("accept", MANIFESTS);
        match password {
            Some(_) => request.basic_auth(&user, password),
            None => request,
        }
        .send()
        .await
    };

    let index = std::env::var("PCG_EDGE_BUNDLE").context("PCG_EDGE_BUNDLE")? + "/" + bundle::INDEX_FILE;
    let index: bundle::Index = serde_json::from_slice(&std::fs::read(index)?)?;
    let mut artifacts = index.artifacts.iter().filter(|artifact| artifact.registry).peekable();
    let first = (*artifacts.peek().context("the bundle has nothing for the registry")?).clone();
    let manifest =
        |artifact: &bundle::Artifact| format!("{}/manifests/{}", repository(&artifact.name), artifact.digest);

    for (path, password) in [("", None), (&*manifest(&first), None), ("", Some("wrong"))] {
        let status = ask(Method::GET, path, password).await?.status();
        anyhow::ensure!(status == StatusCode::UNAUTHORIZED, "/v2/{path}: {status}, expected 401");
    }
    for artifact in artifacts {
        let answer = ask(Method::GET, &manifest(artifact), Some(&password)).await?;
        anyhow::ensure!(answer.status() == StatusCode::OK, "{}: {}", artifact.name, answer.status());
        let digest = answer.headers().get("docker-content-digest").map(|value| value.as_bytes().to_vec());
        anyhow::ensure!(digest.as_deref() == Some(artifact.digest.as_bytes()), "{}: {digest:?}", artifact.name);
        println!("    {} {}", artifact.name, artifact.digest);
    }
    let repository = repository(&first.name);
    for (method, path) in [
        (Method::POST, format!("{repository}/blobs/uploads/")),
        (Method::PUT, format!("{repository}/manifests/intruder")),
        (Method::DELETE, manifest(&first)),
    ] {
        let status = ask(method.clone(), &path, Some(&password)).await?.status();
        anyhow::ensure!(
            matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED),
            "{method} {path} with the pull login: {status}"
        );
    }
    Ok(())
}

/// The example's chart: its image is not in the node image, so its pod proves a pull.
pub async fn a_pod_was_pulled(appliance: &Appliance) -> Result<()> {
    let client = appliance.client().await?;
    let pods = Api::<Pod>::namespaced(client.clone(), "web");
    let pod = eventually("a ready pod of the chart", PATIENCE, || async {
        let list = pods.list(&ListParams::default().labels("app.kubernetes.io/instance=web")).await?.items;
        let ready = list.iter().find(|pod| {
            let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
        });
        Ok::<_, kube::Error>(match ready {
            Some(pod) => Seen::Done(pod.clone()),
            None => Seen::NotYet(format!("{:?}", list.iter().map(|pod| &pod.status).collect::<Vec<_>>())),
        })
    })
    .await?;
    let name = pod.metadata.name.context("a pod without a name")?;
    let events = Api::<Event>::namespaced(client, "web");
    let params = ListParams::default().fields(&format!("involvedObject.name={name},reason=Pulled"));
    let messages: Vec<_> = events.list(&params).await?.items.into_iter().filter_map(|event| event.message).collect();
    // The kubelet says "already present on machine" where it did not have to.
    anyhow::ensure!(messages.iter().any(|text| text.starts_with("Successfully pulled image")), "{messages:?}");
    println!("    {}", messages.join("; "));
    Ok(())
}

/// `host/path:tag` → `host/path`
fn repository(name: &str) -> &str {
    name.rsplit_once(':').map_or(name, |(repository, _)| repository)
}
