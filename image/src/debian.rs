//! Root file systems by mmdebstrap. The mirror is that of the host's own mmdebstrap, the proxy that of the environment.

use std::path::{Path, PathBuf};

use crate::build::{Context, Result, read_json, write_json};
use crate::cache::Key;
use crate::layer::{EPOCH, compress_layer};
use crate::oci::{Layer, link};
use crate::pins::{DEBIAN, Packages};
use crate::process::Tool;

/// Left out of every image; the copyright files stay.
const EXCLUDE: &[&str] = &[
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];

/// Key part of a root file system.
pub fn key(name: &str, packages: &Packages) -> Key {
    Key::new(name)
        .with("suite", &DEBIAN.suite)
        .with("packages", packages.packages.join(" "))
        .with("exclude", EXCLUDE.join(" "))
        .with("format", "1")
}

/// mmdebstrap with suite and packages; the caller adds hooks and, last, the target.
pub fn mmdebstrap(packages: &Packages) -> Tool {
    Tool::new("mmdebstrap", "mmdebstrap")
        .args(["--variant=minbase", "--architectures=amd64"])
        .arg(format!("--include={}", packages.packages.join(",")))
        .args(EXCLUDE.iter().map(|rule| format!("--dpkgopt={rule}")))
        .env("SOURCE_DATE_EPOCH", EPOCH.to_string())
        .hint(
            "run as root; check that the Debian mirror can be reached and that its keyring is installed \
             (package debian-archive-keyring)",
        )
}

/// A layer in the cache.
#[derive(Clone, Debug)]
pub struct Base {
    /// Its folder.
    pub dir: PathBuf,
    /// The layer, blob in [`Base::blob`].
    pub layer: Layer,
}

impl Base {
    /// The layer of a finished folder.
    pub fn open(dir: PathBuf) -> Result<Self> {
        let layer = read_json(&dir.join("layer.json"))?;
        Ok(Self { dir, layer })
    }

    /// The gzip blob.
    pub fn blob(&self) -> PathBuf {
        self.dir.join("layer.tar.gz")
    }
}

/// A layer of these packages.
pub fn ensure_base(context: &Context, name: &str, packages: &Packages) -> Result<Base> {
    let dir = context.artifact(name, &key(name, packages).finish(), 2, |staging, task| {
        task.step("mmdebstrap");
        let tar = staging.join("root.tar");
        mmdebstrap(packages).arg(&DEBIAN.suite).arg(&tar).run()?;
        task.step("compressing");
        let layer = compress_layer(&tar, &staging.join("layer.tar.gz"))?;
        std::fs::remove_file(&tar).map_err(crate::oci::io_at("remove", &tar))?;
        write_json(&staging.join("layer.json"), &layer)
    })?;
    Base::open(dir)
}

/// Links a layer's blob into a layout.
pub fn link_base(base: &Base, layout: &crate::oci::Layout) -> Result<()> {
    Ok(link(&base.blob(), &layout.blob(&base.layer.descriptor.digest))?)
}

/// The program of this path in a base layer, written to a folder.
pub fn extract(base: &Base, path: &str, to: &Path) -> Result<PathBuf> {
    let missing = || crate::build::Error::Mismatch(format!("{} has no {path}", base.blob().display()));
    let bytes = crate::layer::read_from_layer(&base.blob(), path)?.ok_or_else(missing)?;
    crate::build::write(to, bytes)?;
    Ok(to.to_owned())
}
