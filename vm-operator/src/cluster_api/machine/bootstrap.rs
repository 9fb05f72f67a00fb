//! How the bootstrap of a guest ended that did not become a node, from its own files: the contract's sentinel, what
//! `cloud-init` says it did, and the end of what was printed. Secrets are taken out. After a while such a machine is given
//! up.

use edge_api::cluster_api::ANNOTATION_REMEDIATE;
use edge_api::{LibvirtMachine, VirtualMachine, condition};
use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::runtime::controller::Action as Next;
use serde_json::json;
use uuid::Uuid;

use crate::cluster_api::pause::annotate;
use crate::cluster_api::provider::{Finding, Provider};
use crate::cluster_api::upstream::Machine;
use crate::errors::chain;
use crate::libvirt::{self, Hypervisor};
use crate::reconcile::Error;
use crate::status::newest;

/// Reason of the condition `Ready` of a machine whose bootstrap failed.
pub const FAILED: &str = "BootstrapFailed";

/// There once the bootstrap data has been carried out (Cluster API's bootstrap contract).
const SENTINEL: &str = "/run/cluster-api/bootstrap-success.complete";
/// There once `cloud-init` has ended, however it did.
const RESULT: &str = "/run/cloud-init/result.json";
/// What everything that `cloud-init` ran has printed.
const OUTPUT: &str = "/var/log/cloud-init-output.log";
/// Bytes of the output that are read, and that are told.
const LOOKED_AT: u32 = 8 << 10;
const TOLD: usize = 2 << 10;
/// Lines that are told.
const LINES: usize = 20;
/// What takes the place of a secret.
const REDACTED: &str = "[redacted]";

/// What is wrong with the bootstrap of a machine whose guest agent answers; `None` while it lasts, and where nobody can
/// tell.
pub async fn failure(object: &LibvirtMachine, vm: &VirtualMachine, provider: &Provider) -> Option<Finding> {
    let appliance = provider.context.appliance(&object.spec.appliance)?;
    let id: Uuid = vm.spec.id.parse().ok()?;
    let host = provider.context.hosts.get(&appliance.spec.libvirt_uri);
    match host.call(move |libvirt| output(libvirt, id)).await {
        Ok(output) => output.map(|output| {
            let told = told(&output);
            let message =
                format!("cloud-init ended without making a node of this machine; the end of {OUTPUT}: {told}");
            Finding::no(FAILED, message)
        }),
        Err(error) => {
            tracing::debug!(machine = vm.spec.id, error = chain(&error), "bootstrap");
            None
        }
    }
}

/// Asks Cluster API for another machine, once it was told for a while why this one will not become a node. No timeout of
/// its health checks is that short: a guest that is not lost may take its time.
pub async fn give_up(object: &LibvirtMachine, machine: Option<&Machine>, provider: &Provider) -> Result<Next, Error> {
    let status = newest(&provider.context, object);
    let failed = condition::find(&status.conditions, "Ready");
    let Some((failed, machine)) = failed.zip(machine) else { return Ok(provider.resync()) };
    // A clock that was set back makes it begin anew.
    let told = Timestamp::now().duration_since(failed.last_transition_time).try_into().unwrap_or_default();
    let left = provider.context.times.bootstrap.saturating_sub(told);
    if !left.is_zero() {
        return Ok(Next::requeue(left));
    }
    if !machine.annotations().contains_key(ANNOTATION_REMEDIATE) {
        annotate(&provider.context, machine, json!({ ANNOTATION_REMEDIATE: "" })).await?;
        tracing::info!(machine = machine.name_any(), "its bootstrap failed: Cluster API is asked for another one");
    }
    Ok(provider.resync())
}

/// The end of what was printed, where that was not the end that was meant.
fn output(libvirt: &dyn Hypervisor, id: Uuid) -> Result<Option<Vec<u8>>, libvirt::Error> {
    if libvirt.guest_file(id, RESULT, 1)?.is_none() || libvirt.guest_file(id, SENTINEL, 1)?.is_some() {
        return Ok(None);
    }
    Ok(Some(libvirt.guest_file(id, OUTPUT, LOOKED_AT)?.unwrap_or_default()))
}

/// The last lines, without secrets, as one.
fn told(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let cleaned = redact(&text);
    let lines: Vec<&str> = cleaned.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut told = Vec::new();
    let mut bytes = 0;
    for line in lines.iter().rev().take(LINES) {
        bytes += line.len() + 3;
        if bytes > TOLD {
            break;
        }
        told.push(*line);
    }
    told.reverse();
    if told.is_empty() {
        return "nothing".to_owned();
    }
    told.join(" | ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Takes out keys, tokens and whatever looks like one. Rather too much than too little.
fn redact(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut in_key = false;
    for line in text.lines() {
        if line.contains("-----END ") && !in_key {
            // Its beginning was cut off.
            lines.clear();
        }
        let begins = line.contains("-----BEGIN ");
        if begins || (line.contains("-----END ") && !in_key) {
            lines.push(REDACTED.to_owned());
        }
        in_key = (in_key || begins) && !line.contains("-----END ");
        if !in_key && !line.contains("-----END ") {
            lines.push(words(line));
        }
    }
    lines.join("\n")
}

fn words(line: &str) -> String {
    let mut after_name = false;
    let clean = |word: &str| {
        let (name, value) = word.split_once(['=', ':']).unwrap_or((word, ""));
        let named = is_name(name) && (name.starts_with("--") || word.len() > name.len());
        let hidden = std::mem::replace(&mut after_name, named && value.is_empty());
        if word.is_empty() {
            after_name |= hidden;
            word.to_owned()
        } else if named && !value.is_empty() {
            format!("{name}={REDACTED}")
        } else if hidden || word.split(['"', '\'', ',', '=', ':', '@', '/']).any(is_secret) {
            REDACTED.to_owned()
        } else {
            word.to_owned()
        }
    };
    line.split(' ').map(clean).collect::<Vec<_>>().join(" ")
}

/// Whether what follows is a secret. The hash of an authority is none, and tells nobody anything either.
fn is_name(word: &str) -> bool {
    let word = word.to_lowercase();
    ["token", "password", "passwd", "secret", "certificate-key", "authorization"].iter().any(|n| word.ends_with(n))
}

/// Whether a word looks like a bootstrap token, or like something made of chance.
fn is_secret(word: &str) -> bool {
    let lower = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if let Some((id, secret)) = word.trim_end_matches('.').split_once('.')
        && (id.len(), secret.len()) == (6, 16)
        && lower(id)
        && lower(secret)
    {
        return true;
    }
    let encoded = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'_' | b'-' | b'.');
    let has = |is: fn(&u8) -> bool| word.as_bytes().iter().any(is);
    let mixed = has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_digit);
    let hexadecimal = word.bytes().all(|b| b.is_ascii_hexdigit());
    word.len() >= 32 && word.bytes().all(encoded) && (mixed || hexadecimal)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_end_is_told_and_no_more() {
        let output: Vec<String> = (0..500).map(|n| format!("line {n}\r\n")).collect();
        let told = told(output.join("\n").as_bytes());
        assert!(told.starts_with("line 480 | line 481") && told.ends_with("line 499"), "{told}");
        let wide = format!("{}\n", "x ".repeat(400));
        assert!(super::told(wide.repeat(3).as_bytes()).len() <= TOLD);
        assert_eq!(super::told(b"\n \n"), "nothing");
        assert_eq!(super::told(b"\xff\x1b[31mred"), "\u{fffd} [31mred");
    }

    #[test]
    fn what_helps_is_kept() {
        for line in [
            "error execution phase preflight: couldn't validate the identity of the API Server: Get \"https://10.0.0.10:6443/api\"",
            "[WARNING SystemVerification]: cgroups v1 support is in maintenance mode",
            "2026-11-21 10:15:11,123 - cc_scripts_user.py[WARNING]: Failed to run module scripts_user",
            "/usr/local/lib/systemd/system/containerd.service.d/10-registry.conf: not found",
            "failed to pull image registry.k8s.io/kube-apiserver:v1.36.3: connection refused",
            "could not find a JWS signature in the cluster-info ConfigMap for token ID",
        ] {
            assert_eq!(redact(line), line);
        }
    }

    #[test]
    fn secrets_are_taken_out() {
        let token = "abcdef.0123456789abcdef";
        let key = "5f2c1e0d9b8a7f6e5d4c3b2a190807f6e5d4c3b2a1908f7e6d5c4b3a29180706";
        let cases = [
            (format!("kubeadm join 10.0.0.10:6443 --token {token} --certificate-key {key}"), vec![token, key]),
            (format!("--token={token},--certificate-key={key}"), vec![token, key]),
            (format!("[bootstrap-token] Using token: {token}"), vec![token]),
            (format!("found {token}."), vec![token]),
            ("password: hunter2 and more".to_owned(), vec!["hunter2"]),
            ("PASSWORD=hunter2".to_owned(), vec!["hunter2"]),
            ("token:   hunter2".to_owned(), vec!["hunter2"]),
            ("client-key-data: LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVkt".to_owned(), vec!["LS0tLS1CRUdJ"]),
            (
                "a\n-----BEGIN RSA PRIVATE KEY-----\nshort\nlines\n-----END RSA PRIVATE KEY-----\nb".to_owned(),
                vec!["short"],
            ),
            ("of a key\ncut off\n-----END PRIVATE KEY-----\nb".to_owned(), vec!["cut off", "of a key"]),
            ("-----BEGIN PRIVATE KEY-----\nnot\nended".to_owned(), vec!["not", "ended"]),
        ];
        for (text, secrets) in cases {
            let redacted = redact(&text);
            for secret in secrets {
                assert!(!redacted.contains(secret), "{text:?} became {redacted:?}");
            }
            assert!(redacted.contains(REDACTED), "{redacted:?}");
        }
        let kept = redact("a\n-----BEGIN X-----\ns\n-----END X-----\nb");
        assert_eq!(kept, format!("a\n{REDACTED}\nb"));
    }

    proptest! {
        /// Wherever it stands and whatever is around it.
        #[test]
        fn a_token_never_gets_through(before in "[ -~]{0,40}", after in "[ -~\n]{0,40}") {
            let token = "q1w2e3.a1b2c3d4e5f6a7b8";
            let text = format!("{before} {token} {after}");
            prop_assert!(!redact(&text).contains(token));
        }

        #[test]
        fn what_is_told_is_bounded(output in proptest::collection::vec(any::<u8>(), 0..9000)) {
            let told = told(&output);
            prop_assert!(told.len() <= TOLD && !told.contains(char::is_control));
        }
    }
}
