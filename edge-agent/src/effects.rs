//! Every side effect of the agent by its name, so that a test can end the agent before and after each.
//!
//! Files pass their points in `durable`, foreign programs by [`crate::ports::process::Program::effect`], and writes to
//! the API server in [`client`]. What is read over the socket, and the log, are no part of this: nothing depends on them.

use http::Method;
use kube::{Client, Config};

crash_points::effects! {
    /// A side effect.
    #[allow(missing_docs, reason = "the names say it")]
    pub enum Effect {
        WriteFile = "write-file",
        RenamePath = "rename-path",
        RemoveFile = "remove-file",
        MakeFolder = "make-folder",
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
        ExportKubeconfig = "export-kubeconfig",

        LoadRules = "load-rules",
        RemoveRules = "remove-rules",
        PassDocker = "pass-docker",
        RefuseDocker = "refuse-docker",

        PushBlob = "push-blob",
        PushManifest = "push-manifest",
        CreateObject = "create-object",
        PatchObject = "patch-object",
        DeleteObject = "delete-object",
    }
}

impl Effect {
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
