//! `edgectl upgrade`: copies a bundle to the box, and has the agent carry it out.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use edge_api::agent::{Upgrade, UpgradeRequest, UpgradeState};
use edge_client::{Client, Event};
use jiff::SignedDuration;

use super::error::Error;
use super::text::{self, clean};
use super::{Place, logs, patiently, telling};
use crate::bundle::{self, Expected};
use crate::durable;
use crate::engine::chain;
use crate::paths::Paths;
use crate::upgrade::BUNDLES;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of the bundle
    bundle: PathBuf,
    /// Go back to the present bundle where not everything is ready by then
    #[arg(long, value_name = "DURATION", default_value = "30m")]
    deadline: SignedDuration,
    /// Follow until it is done, or went back
    #[arg(short, long)]
    wait: bool,
}

pub async fn run(args: &Args, place: &Place) -> Result<ExitCode, Error> {
    let client = place.client();
    // Before gigabytes are copied for nobody.
    patiently(client.status()).await?;
    let (from, paths) = (args.bundle.clone(), Paths::new(place.root()));
    let copied = tokio::task::spawn_blocking(move || adopt(&from, &paths));
    let bundle = telling("copying the bundle", copied).await;
    let bundle = bundle.map_err(|e| Error::Other { message: chain(&e), hint: None })??;
    let deadline_seconds = args.deadline.as_secs().unsigned_abs();
    let request = UpgradeRequest { bundle: bundle.display().to_string(), deadline_seconds };
    let upgrade = patiently(client.upgrade(&request)).await?;
    text::print(&format!("upgrade from {} to {}\n", clean(&upgrade.from), clean(&upgrade.to)))?;
    if args.wait { until_over(&client).await } else { Ok(ExitCode::SUCCESS) }
}

/// The bundle below the root, where no stick can be pulled out from under it. Its content is checked by the agent.
fn adopt(from: &Path, paths: &Paths) -> Result<PathBuf, Error> {
    let other = |error: bundle::Error| Error::Other {
        message: chain(&error),
        hint: Some("copy the bundle again, and give its folder".to_owned()),
    };
    let (index, digest) = bundle::read_index(from).map_err(other)?;
    let files = bundle::expected(from, &index).map_err(other)?;
    let bundles = paths.join(BUNDLES);
    durable::ensure_folder(&bundles, 0o700)?;
    let name: String = digest.trim_start_matches("sha256:").chars().take(16).collect();
    let to = bundles.join(&name);
    if to.exists() {
        return Ok(to);
    }
    let staging = bundles.join(format!(".{name}"));
    durable::remove_folder(&staging)?;
    let needs = files.iter().map(|file| file.size).sum();
    let documents = ["oci-layout", "index.json", edge_api::bundle::INDEX_FILE].map(|name| from.join(name));
    let mut all = files.into_iter().map(|Expected { path, .. }| path).chain(documents);
    let copied = all.try_for_each(|path| {
        let place = staging.join(path.strip_prefix(from).unwrap_or(&path));
        copy(&path, &place).map_err(|error| (path, error))
    });
    if let Err((path, error)) = copied {
        durable::remove_folder(&staging)?;
        if error.kind() != ErrorKind::StorageFull {
            return Err(Error::read(&path, error));
        }
        return Err(Error::NoSpace { place: bundles.clone(), needs, free: durable::free(&bundles).unwrap_or(0) });
    }
    durable::rename(&staging, &to)?;
    Ok(to)
}

/// A second name where that is possible: a bundle is not written to while it is used.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to)?;
    fs::File::open(to)?.sync_all()
}

/// Says every change until it is over.
async fn until_over(client: &Client) -> Result<ExitCode, Error> {
    let mut events = patiently(client.events()).await?;
    let mut shown = None;
    loop {
        let Some(event) = logs::next(&mut events).await? else {
            events = logs::reconnect(client).await?;
            continue;
        };
        let Event::Status(status) = event else { continue };
        let Some(upgrade) = status.upgrade.clone() else { continue };
        let doing = if is_over(&upgrade) { upgrade.message.clone() } else { status.message.clone() };
        let line = format!("{:?}: {}", upgrade.state, clean(&doing));
        if shown.as_ref() != Some(&line) {
            text::complain(&line);
            shown = Some(line);
        }
        if is_over(&upgrade) {
            return Ok(if upgrade.state == UpgradeState::Done { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
}

fn is_over(upgrade: &Upgrade) -> bool {
    matches!(upgrade.state, UpgradeState::Done | UpgradeState::Returned)
}

#[cfg(test)]
mod tests {
    use edge_tests::{Fault, SmallDisk};

    use super::*;

    /// A bundle whose only program is this.
    fn bundle_of(program: &[u8], from: &Path) {
        fs::create_dir_all(from.join("bin")).unwrap();
        let program = serde_json::json!({"name": "kind", "digest": bundle::sha256(program), "size": program.len(),
            "source": ""});
        let index = serde_json::json!({"formatVersion": 1, "version": "2", "pinsDigest": "", "artifacts": [],
            "kubernetesVersion": "v1.36.3", "programs": [program]});
        fs::write(from.join(edge_api::bundle::INDEX_FILE), index.to_string()).unwrap();
        fs::write(from.join("oci-layout"), "{}").unwrap();
        fs::write(from.join("index.json"), "{}").unwrap();
    }

    #[test]
    fn a_bundle_is_taken_over_whole_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let (from, paths) = (folder.path().join("stick"), Paths::new(folder.path().join("root")));
        bundle_of(b"kind", &from);
        assert!(adopt(&from, &paths).unwrap_err().to_string().contains("bin/kind"), "a program is missing");
        fs::write(from.join("bin/kind"), "kind").unwrap();
        fs::write(from.join("notes.txt"), "not of the bundle").unwrap();
        let to = adopt(&from, &paths).unwrap();
        assert_eq!(fs::read(to.join("bin/kind")).unwrap(), b"kind");
        assert!(!to.join("notes.txt").exists());
        assert_eq!(adopt(&from, &paths).unwrap(), to);
        assert_eq!(fs::read_dir(paths.join(BUNDLES)).unwrap().count(), 1, "nothing half-copied stays");
    }

    #[test]
    fn a_bundle_that_does_not_fit_takes_no_space() {
        let folder = tempfile::tempdir().unwrap();
        let disk = SmallDisk::new(4 << 20).unwrap();
        let (from, paths) = (folder.path().join("stick"), Paths::new(disk.path().join("root")));
        let program = vec![7; 3 << 20];
        bundle_of(&program, &from);
        fs::write(from.join("bin/kind"), &program).unwrap();
        paths.ensure().unwrap();
        disk.leave(2 << 20).unwrap();
        let fault = Fault::strikes("a bundle is copied to a full disk");
        let error = adopt(&from, &paths).unwrap_err().to_string();
        assert!(error.ends_with("bundles: the bundle needs 3 MiB, and 2 are free"), "{error}");
        assert_eq!(disk.free().unwrap(), 2 << 20);
        disk.leave(4 << 20).unwrap();
        assert!(fs::read(adopt(&from, &paths).unwrap().join("bin/kind")).unwrap() == program);
        fault.survived();
    }
}
