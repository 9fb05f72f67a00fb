//! The operator as a process of its own, which ends at the points that a test wants.

use anyhow::Result;
use edge_tests::crashes::{self, Armed};
use tokio::process::Command;

use super::{NAMESPACE, OPERATOR, Site, kubeconfig_as};

/// Its waits, as short as they can be.
const TIMES: [&str; 8] =
    ["--shutdown-seconds", "3", "--address-seconds", "5", "--force-seconds", "1", "--bootstrap-seconds", "1"];

/// Does something while an operator runs that ends at each of the points that it reaches.
///
/// # Errors
/// As of what is done; or the operator has ended without having been told to.
pub async fn while_it_ends<T>(site: &Site, armed: &Armed, act: impl Future<Output = Result<T>>) -> Result<T> {
    let kubeconfig = kubeconfig_as(&site.plane, OPERATOR)?;
    let operator = || {
        let mut operator = Command::new(env!("CARGO_BIN_EXE_vm-operator"));
        operator
            .args(["run", "--namespace", NAMESPACE, "--health", "127.0.0.1:0", "--log-format", "text"])
            .args(TIMES)
            .env("KUBECONFIG", &kubeconfig);
        operator
    };
    crashes::while_it_ends(operator, armed, act).await
}
