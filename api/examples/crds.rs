//! Writes the custom resource definitions to `deploy/crds/`, one file each; with `--check` compares instead.

use std::{env, fs, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let check = env::args().any(|a| a == "--check");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    let mut drifted = false;
    for crd in edge_api::definitions() {
        let name = crd.metadata.name.clone().unwrap_or_default();
        let path = folder.join(format!("{name}.yaml"));
        let text = match serde_saphyr::to_string(&crd) {
            Ok(text) => format!("# Generated from api/ by `cargo run -p edge-api --example crds`.\n{text}"),
            Err(error) => {
                eprintln!("{name}: {error}");
                return ExitCode::FAILURE;
            }
        };
        if check {
            if fs::read_to_string(&path).unwrap_or_default() != text {
                eprintln!("{} differs from api/: run `cargo run -p edge-api --example crds`", path.display());
                drifted = true;
            }
        } else if let Err(error) = fs::create_dir_all(&folder).and_then(|()| fs::write(&path, text)) {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    if drifted { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
