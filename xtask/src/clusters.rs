//! The workload clusters of a site: every file of its folder `clusters/` is one `EdgeCluster`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use edge_api::EdgeCluster;
use edge_api::agent::{Phase, Status};
use edge_client::Client;

use crate::agent::Agent;
use crate::command::{command, quiet};
use crate::follow::{self, Limits};
use crate::table::human;

/// A cluster of the site.
pub struct Wanted {
    /// Its name.
    pub name: String,
    file: PathBuf,
}

/// Reads a folder of clusters, which need not be there.
pub fn read(dir: &Path) -> Result<Vec<Wanted>> {
    let mut wanted = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(wanted),
        entries => entries.with_context(|| dir.display().to_string())?,
    };
    for entry in entries {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "yaml") {
            let shown = || file.display().to_string();
            let text = fs::read_to_string(&file).with_context(shown)?;
            let cluster: EdgeCluster = serde_saphyr::from_str(&text).with_context(shown)?;
            let name = cluster.metadata.name.with_context(|| format!("{} has no metadata.name", file.display()))?;
            wanted.push(Wanted { name, file });
        }
    }
    wanted.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(wanted)
}

/// Makes the clusters that are not there, and follows all until they are ready. The appliance must be.
pub fn ensure(agent: &Agent, clusters: &[Wanted], start: Instant) -> Result<()> {
    if clusters.is_empty() {
        return Ok(());
    }
    let known = runtime()?.block_on(Client::new(agent.socket()).status())?;
    ask(agent, clusters, &known)?;
    let names: Vec<_> = clusters.iter().map(|cluster| cluster.name.clone()).collect();
    follow::until_clusters_are_ready(&agent.socket(), Limits::clusters(), &names, || agent.process().is_some())?;
    println!("{} ready after {}", plural(&names), human(start.elapsed()));
    Ok(())
}

/// Makes the clusters that are not there once the appliance can, for as long as `wanted` holds; says nothing.
pub fn ask_quietly(agent: &Agent, clusters: &[Wanted], mut wanted: impl FnMut() -> bool) -> Result<()> {
    let runtime = runtime()?;
    while wanted() {
        match runtime.block_on(Client::new(agent.socket()).status()) {
            Ok(status) if status.phase == Phase::Ready => return ask(agent, clusters, &status),
            _ => std::thread::sleep(Duration::from_millis(500)),
        }
    }
    Ok(())
}

fn ask(agent: &Agent, clusters: &[Wanted], status: &Status) -> Result<()> {
    for cluster in clusters.iter().filter(|wanted| status.clusters.iter().all(|there| there.name != wanted.name)) {
        let root = agent.root.as_os_str();
        let mut create = command(agent.program("edgectl"));
        create.arg("--root").arg(root).args(["cluster", "create", "-f"]).arg(&cluster.file);
        quiet(&mut create)?;
    }
    Ok(())
}

fn plural(names: &[String]) -> String {
    match names {
        [one] => format!("cluster {one} is"),
        many => format!("clusters {} are", many.join(", ")),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_has_a_cluster() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/site/clusters");
        let names: Vec<_> = read(&dir).unwrap().into_iter().map(|cluster| cluster.name).collect();
        assert_eq!(names, ["shop"]);
        assert!(read(&dir.join("absent")).unwrap().is_empty());
    }
}
