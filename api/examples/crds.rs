//! Writes what is generated below `deploy/`: the custom resource definitions to `crds/`, one file each, and the
//! components of the infrastructure provider as `clusterctl` installs them to `clusterctl/`; with `--check` compares
//! instead.

use std::path::{Path, PathBuf};
use std::{env, fs, io, process::ExitCode};

const HEAD: &str = "# Generated from api/ by `cargo run -p edge-api --example crds`.\n";

fn main() -> ExitCode {
    let check = env::args().any(|a| a == "--check");
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let files = match files(&deploy) {
        Ok(files) => files,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let mut drifted = false;
    for (path, text) in files {
        if check {
            if fs::read_to_string(&path).unwrap_or_default() != text {
                eprintln!("{} differs from api/: run `cargo run -p edge-api --example crds`", path.display());
                drifted = true;
            }
        } else if let Err(error) =
            path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, text))
        {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    if drifted { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Every file with its content.
fn files(deploy: &Path) -> io::Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    let namespace = edge_api::names::NAMESPACE;
    let mut components = format!("{HEAD}apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n");
    for crd in edge_api::definitions() {
        let name = crd.metadata.name.clone().unwrap_or_default();
        let text = serde_saphyr::to_string(&crd).map_err(|e| io::Error::other(format!("{name}: {e}")))?;
        components.push_str("---\n");
        components.push_str(&text);
        files.push((deploy.join("crds").join(format!("{name}.yaml")), format!("{HEAD}{text}")));
    }
    components.push_str("---\n");
    components.push_str(&fs::read_to_string(deploy.join("operator.yaml"))?);
    files.push((deploy.join("clusterctl/infrastructure-components.yaml"), components));
    Ok(files)
}
