//! A second `up` reads and writes nothing.

use std::time::{Duration, Instant};

use anyhow::Result;
use edge_api::names;
use edge_tests::Inventory;
use edge_tests::wait::{Seen, eventually};

use crate::appliance::Appliance;

/// Nobody of ours writes, neither through a second `up` nor in the resyncs around it.
pub async fn up_again(appliance: &Appliance) -> Result<()> {
    let audit = appliance.audit();
    let operator = format!("system:serviceaccount:{}:", names::NAMESPACE);
    let ours = |user: &str| user == "kubernetes-admin" || user.starts_with(&operator);
    // Statuses may still be on their way from the last phase: the mark is set once it has been quiet for a while.
    let quiet = Duration::from_secs(15);
    let mut last = (audit.mark()?, Instant::now());
    // That the log is the right one, and our users are known by these names.
    for user in ["kubernetes-admin", &format!("{operator}vm-operator")] {
        let made = audit.writes_since(audit.start(), |writer| writer == user)?;
        anyhow::ensure!(!made.is_empty(), "{} shows no write by {user}", audit.path().display());
    }
    eventually("our users to write nothing for a while", Duration::from_mins(3), || {
        let writes = audit.writes_since(last.0, ours);
        let calm = last.1.elapsed() > quiet;
        if writes.as_ref().is_ok_and(|writes| !writes.is_empty())
            && let Ok(mark) = audit.mark()
        {
            last = (mark, Instant::now());
        }
        async move { writes.map(|writes| Seen::when(writes.is_empty() && calm, writes)) }
    })
    .await?;
    let before = Inventory::libvirt()?;
    let mark = audit.mark()?;
    let start = Instant::now();
    let status = appliance.up()?.status().await?;
    anyhow::ensure!(status.success(), "up: {status}");
    let time = start.elapsed();
    // What the agent noticed, it would have acted upon by then.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let writes = audit.writes_since(mark, ours)?;
    let writes: Vec<_> = writes.iter().map(ToString::to_string).collect();
    anyhow::ensure!(writes.is_empty(), "a second up wrote:\n{}", writes.join("\n"));
    let difference = before.difference(&Inventory::libvirt()?);
    anyhow::ensure!(difference.is_empty(), "a second up changed libvirt:\n{difference}");
    anyhow::ensure!(time < Duration::from_mins(1), "a second up took {time:?}");
    println!("    {:.1} s", time.as_secs_f64());
    Ok(())
}
