//! Every side effect of the agent by its name, so that a test can end the agent before and after each.
//!
//! Files pass their points in `durable`, each kind of file its own; foreign programs by
//! [`crate::ports::process::Program::effect`], and writes to the API server in [`client`]. What is read over the socket,
//! and the log, are no part of this: nothing depends on them.

use std::ffi::OsStr;
use std::path::Path;

use edge_api::agent::UpgradeState;
use http::Method;
use kube::{Client, Config};

crash_points::effects! {
    /// A side effect.
    #[allow(missing_docs, reason = "the names say it")]
    pub enum Effect {
        WriteTemplate = "write-template",
        WriteSchema = "write-schema",
        WriteSiteFile = "write-site-file",
        WriteSiteInForce = "write-site-in-force",
        WriteSiteInstalled = "write-site-installed",
        WriteInstance = "write-instance",
        WriteIdentity = "write-identity",
        WriteNumber = "write-number",
        WriteClock = "write-clock",
        WriteSteps = "write-steps",
        WriteVerified = "write-verified",
        WriteAuthority = "write-authority",
        WriteAuthorityKey = "write-authority-key",
        WriteLeaf = "write-leaf",
        WritePullLogin = "write-pull-login",
        WritePullHash = "write-pull-hash",
        WriteMirror = "write-mirror",
        WriteContent = "write-content",
        WriteNodeImage = "write-node-image",
        WriteNodeConfig = "write-node-config",
        WriteNodeMade = "write-node-made",
        WriteNodeSettings = "write-node-settings",
        WriteNodeNames = "write-node-names",
        WriteNodeProxy = "write-node-proxy",
        WriteNodeTrust = "write-node-trust",
        WriteAuditPolicy = "write-audit-policy",
        WriteHostTouched = "write-host-touched",
        WriteRestored = "write-restored",
        WriteUpgrade = "write-upgrade",
        WriteProgram = "write-program",
        WriteFile = "write-file",
        PlaceSnapshot = "place-snapshot",
        PlaceData = "place-data",
        PlaceBundle = "place-bundle",
        KeepPrograms = "keep-programs",
        RenamePath = "rename-path",
        RemoveNodeMade = "remove-node-made",
        RemoveKubeconfig = "remove-kubeconfig",
        RemoveKeptData = "remove-kept-data",
        RemoveFile = "remove-file",
        MakeFolder = "make-folder",
        RemoveData = "remove-data",
        ForgetPrograms = "forget-programs",
        RemoveFolder = "remove-folder",
        PublishProfile = "publish-profile",
        PruneProfiles = "prune-profiles",

        CreateDockerNetwork = "create-docker-network",
        RemoveDockerNetwork = "remove-docker-network",
        LoadImage = "load-image",
        RemoveImage = "remove-image",
        CreateNode = "create-node",
        StartNode = "start-node",
        RunInNode = "run-in-node",
        RunOnce = "run-once",
        RemoveContainer = "remove-container",
        RemoveVolume = "remove-volume",
        ExportKubeconfig = "export-kubeconfig",

        LoadRules = "load-rules",
        RemoveRules = "remove-rules",
        PassDocker = "pass-docker",
        RefuseDocker = "refuse-docker",

        PushBlob = "push-blob",
        PushManifest = "push-manifest",
        DeleteManifest = "delete-manifest",
        CollectGarbage = "collect-garbage",
        CreateObject = "create-object",
        PatchObject = "patch-object",
        DeleteObject = "delete-object",

        KeepData = "keep-data",
        BeginUpgrade = "begin-upgrade",
        EndUpgrade = "end-upgrade",
        TurnBack = "turn-back",
        EndReturn = "end-return",
        GiveProgramsBack = "give-programs-back",
    }
}

/// Effects on files, by the file's name; where a folder has many of a kind, by the folder's.
type Named = &'static [(&'static str, Effect)];

const WRITES: Named = &[
    ("unattended.template.yaml", Effect::WriteTemplate),
    ("unattended.schema.json", Effect::WriteSchema),
    ("unattended.yaml", Effect::WriteSiteFile),
    ("site.yaml", Effect::WriteSiteInForce),
    ("installed.yaml", Effect::WriteSiteInstalled),
    ("instance", Effect::WriteInstance),
    ("identity.json", Effect::WriteIdentity),
    ("agent.pid", Effect::WriteNumber),
    ("clock.json", Effect::WriteClock),
    ("steps.json", Effect::WriteSteps),
    ("bundle.json", Effect::WriteVerified),
    ("ca.crt", Effect::WriteAuthority),
    ("ca.key", Effect::WriteAuthorityKey),
    ("registry.pem", Effect::WriteLeaf),
    ("registry-pull", Effect::WritePullLogin),
    ("registry-htpasswd", Effect::WritePullHash),
    ("hosts.toml", Effect::WriteMirror),
    ("registry.json", Effect::WriteContent),
    ("node-image.json", Effect::WriteNodeImage),
    ("kind.json", Effect::WriteNodeConfig),
    ("cluster.json", Effect::WriteNodeMade),
    ("node-settings.json", Effect::WriteNodeSettings),
    ("resolv.conf", Effect::WriteNodeNames),
    ("proxy.conf", Effect::WriteNodeProxy),
    ("ca-certificates", Effect::WriteNodeTrust),
    ("policy.yaml", Effect::WriteAuditPolicy),
    ("host-touched", Effect::WriteHostTouched),
    ("restored.json", Effect::WriteRestored),
    ("upgrade.json", Effect::WriteUpgrade),
    ("bin", Effect::WriteProgram),
];
const RENAMES: Named = &[
    ("backup.db", Effect::PlaceSnapshot),
    ("member", Effect::PlaceData),
    ("bundles", Effect::PlaceBundle),
    (".before", Effect::KeepPrograms),
];
const REMOVALS: Named = &[
    ("cluster.json", Effect::RemoveNodeMade),
    ("admin.conf", Effect::RemoveKubeconfig),
    ("upgrade.db", Effect::RemoveKeptData),
    ("member", Effect::RemoveData),
    (".before", Effect::ForgetPrograms),
];

fn named(path: &Path, effects: Named) -> Option<Effect> {
    let folder = path.parent().and_then(Path::file_name);
    let of = |name: &OsStr| effects.iter().find(|(named, _)| name == *named);
    [path.file_name(), folder].into_iter().flatten().find_map(of).map(|(_, effect)| *effect)
}

impl Effect {
    /// The write of a file.
    pub fn write(path: &Path) -> Self {
        named(path, WRITES).unwrap_or(Self::WriteFile)
    }

    /// The rename of a file or folder to this path.
    pub fn rename(to: &Path) -> Self {
        named(to, RENAMES).unwrap_or(Self::RenamePath)
    }

    /// The removal of a file.
    pub fn remove_file(path: &Path) -> Self {
        named(path, REMOVALS).unwrap_or(Self::RemoveFile)
    }

    /// The removal of a folder.
    pub fn remove_folder(path: &Path) -> Self {
        named(path, REMOVALS).unwrap_or(Self::RemoveFolder)
    }

    /// The turn of an upgrade to a state.
    pub fn turn(state: UpgradeState) -> Self {
        match state {
            UpgradeState::Asked => Self::WriteUpgrade,
            UpgradeState::Running => Self::BeginUpgrade,
            UpgradeState::Done => Self::EndUpgrade,
            UpgradeState::Returning => Self::TurnBack,
            UpgradeState::Returned => Self::EndReturn,
        }
    }

    /// Carries it out.
    pub fn around<T>(self, act: impl FnOnce() -> T) -> T {
        crash_points::around(self, act)
    }

    /// Carries it out.
    pub async fn around_async<T>(self, act: impl Future<Output = T>) -> T {
        crash_points::around_async(self, act).await
    }

    fn of(method: &Method, path: &str) -> Result<Option<Self>, String> {
        Ok(match *method {
            Method::GET => None,
            Method::POST => Some(Self::CreateObject),
            Method::PATCH => Some(Self::PatchObject),
            Method::DELETE => Some(Self::DeleteObject),
            _ => return Err(format!("{method} {path}")),
        })
    }
}

/// A client of the system cluster whose writes are named effects.
///
/// # Errors
/// As of [`Client::try_from`].
pub fn client(config: Config) -> kube::Result<Client> {
    crash_points::api::client(config, Effect::of)
}
