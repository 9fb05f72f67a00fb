//! `edgectl vm`: virtual machines as the operator reports them.

use std::fmt::Write as _;
use std::process::ExitCode;

use edge_api::VirtualMachine;
use edge_api::condition;
use edge_client::Client;
use jiff::Timestamp;

use super::error::Error;
use super::text::{self, Cell, Paint, clean, span, table};
use super::{Format, patiently};

#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// All virtual machines
    List {
        /// Format of the result
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// One virtual machine, in detail
    #[command(after_help = "Example:
  edgectl vm get router -o yaml")]
    Get {
        /// Name of the machine
        name: String,
        /// Format of the result
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
}

pub async fn run(command: &Command, client: &Client) -> Result<ExitCode, Error> {
    let paint = Paint::detect();
    match command {
        Command::List { output } => {
            let vms: Vec<_> = patiently(client.vms()).await?.into_iter().map(readable).collect();
            match output {
                Format::Table => text::print(&list(&vms, Timestamp::now(), paint))?,
                Format::Json => text::json(&vms, true)?,
                Format::Yaml => text::yaml(&vms)?,
            }
        }
        Command::Get { name, output } => {
            let vm = readable(patiently(client.vm(name)).await?);
            match output {
                Format::Table => text::print(&detail(&vm, Timestamp::now(), paint))?,
                Format::Json => text::json(&vm, true)?,
                Format::Yaml => text::yaml(&vm)?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Without the API server's bookkeeping of who wrote which field.
fn readable(mut vm: VirtualMachine) -> VirtualMachine {
    vm.metadata.managed_fields = None;
    vm
}

fn name(vm: &VirtualMachine) -> &str {
    vm.metadata.name.as_deref().unwrap_or_default()
}

fn ready(vm: &VirtualMachine) -> (bool, &str, &str) {
    let conditions = vm.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let condition = condition::find(conditions, "Ready");
    (
        condition::is_true(conditions, "Ready"),
        condition.map(|c| c.reason.as_str()).unwrap_or_default(),
        condition.map(|c| c.message.as_str()).unwrap_or_default(),
    )
}

fn addresses(vm: &VirtualMachine) -> Vec<String> {
    let addresses = vm.status.as_ref().map(|status| status.addresses.as_slice()).unwrap_or_default();
    addresses.iter().map(|a| format!("{} {}/{}", a.network, a.ip, a.prefix)).collect()
}

fn phase(vm: &VirtualMachine) -> String {
    vm.status.as_ref().map_or_else(|| "Pending".to_owned(), |status| format!("{:?}", status.phase))
}

fn list(vms: &[VirtualMachine], now: Timestamp, paint: Paint) -> String {
    if vms.is_empty() {
        return "no virtual machines\n".to_owned();
    }
    let rows = vms
        .iter()
        .map(|vm| {
            let (ready, reason, _) = ready(vm);
            let word = if ready { "yes" } else { "no" };
            let addresses = addresses(vm).join(", ");
            let age = vm.metadata.creation_timestamp.as_ref().map_or_else(|| "-".to_owned(), |t| span(t.0, now));
            vec![
                Cell::from(name(vm)),
                Cell::from(phase(vm)),
                Cell::painted(word, if ready { paint.green(word) } else { paint.yellow(word) }),
                Cell::from(if reason.is_empty() { "-" } else { reason }),
                Cell::from(vm.spec.vcpus.to_string()),
                Cell::from(format!("{} MiB", vm.spec.memory_mib)),
                Cell::from(age),
                Cell::from(if addresses.is_empty() { "-".to_owned() } else { addresses }),
            ]
        })
        .collect();
    table(&["NAME", "PHASE", "READY", "REASON", "CPUS", "MEMORY", "AGE", "ADDRESSES"], rows, paint)
}

fn detail(vm: &VirtualMachine, now: Timestamp, paint: Paint) -> String {
    let spec = &vm.spec;
    let status = vm.status.clone().unwrap_or_default();
    let (ready, reason, message) = ready(vm);
    let mut out = String::new();
    let mut line = |key: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(out, "{key:<13}{}", clean(value));
        }
    };
    line("name", name(vm));
    line("id", &spec.id);
    line("phase", &phase(vm));
    line("ready", &format!("{} {reason}: {message}", if ready { "yes" } else { "no" }));
    line("power", &format!("{:?}", spec.power_state));
    line("vCPUs", &spec.vcpus.to_string());
    line("memory", &format!("{} MiB", spec.memory_mib));
    line("image", spec.image.as_deref().unwrap_or_default());
    if let Some(disk) = &spec.root_disk {
        let size = disk.size_gib.map(|size| format!(", {size} GiB")).unwrap_or_default();
        line("root disk", &format!("pool {}{size}", disk.pool));
    }
    for disk in &spec.data_disks {
        line("data disk", &format!("{}, pool {}, {} GiB", disk.name, disk.pool, disk.size_gib));
    }
    line("networks", &spec.interfaces.iter().map(|i| i.network.as_str()).collect::<Vec<_>>().join(", "));
    for address in &status.addresses {
        line("address", &format!("{}/{}  {} on {}", address.ip, address.prefix, address.mac, address.network));
    }
    line("domain", status.domain.as_deref().unwrap_or_default());
    line("accelerator", status.accelerator.as_deref().unwrap_or_default());
    line("console log", status.console_log.as_deref().unwrap_or_default());
    if !status.conditions.is_empty() {
        let rows = status
            .conditions
            .iter()
            .map(|c| {
                vec![
                    Cell::from(&c.type_),
                    Cell::from(format!("{:?}", c.status)),
                    Cell::from(span(c.last_transition_time, now)),
                    Cell::from(&c.reason),
                    Cell::from(&c.message),
                ]
            })
            .collect();
        out.push('\n');
        out.push_str(&table(&["CONDITION", "STATUS", "SINCE", "REASON", "MESSAGE"], rows, paint));
    }
    out
}
