//! Commands inside a guest, by its guest agent.

use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use edge_tests::inventory::virsh;
use edge_tests::wait::{Seen, eventually};
use serde_json::{Value, json};

/// Runs a program in the guest and returns exit code and output.
pub async fn exec(domain: &str, program: &str, arguments: &[&str]) -> Result<(i64, String)> {
    let run = json!({
        "execute": "guest-exec",
        "arguments": {"path": program, "arg": arguments, "capture-output": true},
    });
    let pid = agent(domain, &run)?["pid"].as_i64().context("guest-exec gave no pid")?;
    let status = json!({"execute": "guest-exec-status", "arguments": {"pid": pid}});
    let what = format!("{program} in {domain}");
    let done = eventually(&what, Duration::from_mins(2), || async {
        let status = agent(domain, &status)?;
        anyhow::Ok(Seen::when(status["exited"] == true, status))
    })
    .await?;
    let text = |key: &str| -> Result<String> {
        let bytes = BASE64_STANDARD.decode(done[key].as_str().unwrap_or_default())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let code = done["exitcode"].as_i64().with_context(|| format!("{what} was killed: {done}"))?;
    Ok((code, text("out-data")? + &text("err-data")?))
}

/// Runs a program that must succeed.
pub async fn must(domain: &str, program: &str, arguments: &[&str]) -> Result<String> {
    let (code, output) = exec(domain, program, arguments).await?;
    anyhow::ensure!(code == 0, "{program} {} in {domain}: exit code {code}\n{output}", arguments.join(" "));
    Ok(output)
}

fn agent(domain: &str, command: &Value) -> Result<Value> {
    let answer = virsh(&["qemu-agent-command", "--timeout", "20", domain, &command.to_string()])?;
    let answer: Value = serde_json::from_str(answer.trim())?;
    Ok(answer["return"].clone())
}
