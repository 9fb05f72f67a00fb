//! What is on a host that PCG-Edge could have left behind: libvirt's objects, docker's, firewall rules, links, mounts.
//!
//! Asked with the programs that people use (`virsh`, `docker`, `ip`, `iptables-save`, `nft`), not with our own code,
//! which could be wrong in the same way on both sides.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

/// One look at a host: items by section.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Inventory(BTreeMap<&'static str, BTreeSet<String>>);

/// What differs between two looks; empty where nothing does.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Difference {
    /// There only in the second look.
    pub added: Vec<String>,
    /// There only in the first look.
    pub removed: Vec<String>,
}

impl Difference {
    /// Whether both looks were the same.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.removed.iter().try_for_each(|item| writeln!(f, "- {item}"))?;
        self.added.iter().try_for_each(|item| writeln!(f, "+ {item}"))
    }
}

impl Inventory {
    /// Looks at everything; libvirt and docker must run.
    pub fn take() -> Result<Self> {
        let mut all = Self::libvirt()?;
        all.put("container", lines(&run("docker", &["ps", "-a", "--format", "{{.Names}} {{.Image}} {{.State}}"])?));
        all.put("docker network", lines(&run("docker", &["network", "ls", "--format", "{{.Name}} {{.Driver}}"])?));
        all.put("docker volume", lines(&run("docker", &["volume", "ls", "-q"])?));
        for (section, program) in [("iptables", "iptables-save"), ("ip6tables", "ip6tables-save")] {
            all.put(section, iptables_rules(&run(program, &[])?));
        }
        all.put("nftables", nft_rules(&run("nft", &["list", "ruleset"])?));
        all.put("link", links(&run("ip", &["-o", "link", "show"])?));
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        all.put("mount", mounts.lines().filter_map(|line| Some(line.split(' ').nth(4)?.to_owned())));
        Ok(all)
    }

    /// Looks at libvirt alone.
    pub fn libvirt() -> Result<Self> {
        let mut all = Self::default();
        let names = |kind: &str| Ok::<_, anyhow::Error>(lines(&virsh(&[kind, "--all", "--name"])?).collect::<Vec<_>>());
        let mut domains = Vec::new();
        for name in names("list")? {
            let state = virsh(&["domstate", &name])?;
            let id = virsh(&["domuuid", &name])?;
            domains.push(format!("{name} {} {}", id.trim(), state.trim()));
        }
        all.put("domain", domains);
        for (section, kind, info) in [("libvirt network", "net-list", "net-info"), ("pool", "pool-list", "pool-info")] {
            let mut items = Vec::new();
            for name in names(kind)? {
                let text = virsh(&[info, &name])?;
                items.push(format!("{name} active={} autostart={}", active(&text), field(&text, "Autostart")));
            }
            all.put(section, items);
        }
        let mut volumes = Vec::new();
        for pool in lines(&virsh(&["pool-list", "--name"])?) {
            // Two lines of heading, then name and path.
            let list = virsh(&["vol-list", &pool])?;
            volumes
                .extend(list.lines().skip(2).filter_map(|l| Some(format!("{pool}/{}", l.split_whitespace().next()?))));
        }
        all.put("volume", volumes);
        Ok(all)
    }

    /// What is here and not in `later`, and the other way round.
    pub fn difference(&self, later: &Self) -> Difference {
        let items = |one: &Self, other: &Self| {
            let only = one.0.iter().flat_map(|(section, items)| {
                let others = other.0.get(section);
                items
                    .iter()
                    .filter(move |item| !others.is_some_and(|o| o.contains(*item)))
                    .map(move |i| format!("{section}: {i}"))
            });
            only.collect()
        };
        Difference { added: items(later, self), removed: items(self, later) }
    }

    /// Items of a section.
    pub fn section(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.get(name).into_iter().flatten().map(String::as_str)
    }

    fn put(&mut self, section: &'static str, items: impl IntoIterator<Item = String>) {
        let set = self.0.entry(section).or_default();
        for item in items {
            // The same rule twice is not the same as once.
            let mut name = item.clone();
            let mut count = 1;
            while !set.insert(name) {
                count += 1;
                name = format!("{item} ({count})");
            }
        }
    }
}

/// Runs `virsh` on the system's libvirt.
pub fn virsh(arguments: &[&str]) -> Result<String> {
    run("virsh", &[&["-q", "-c", "qemu:///system"], arguments].concat())
}

/// Runs a program and returns its output.
///
/// # Errors
/// It is not there, or failed: with its output.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let shown = || format!("{program} {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").output().with_context(shown)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{}: {}\n{text}{errors}", shown(), output.status);
    Ok(text)
}

fn lines(text: &str) -> impl Iterator<Item = String> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned)
}

/// Value of a `Name:   value` line.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map_or("", str::trim)
}

/// Networks say `Active: yes`, pools `State: running`.
fn active(text: &str) -> bool {
    field(text, "Active") == "yes" || field(text, "State") == "running"
}

/// Names of links, without the peer that `name@peer` shows.
fn links(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.split(": ").nth(1));
    names.map(|name| name.split('@').next().unwrap_or(name).to_owned()).collect()
}

/// Rules with their tables. Chains without a rule do nothing, unless their policy does.
fn iptables_rules(text: &str) -> Vec<String> {
    let mut table = "";
    let mut rules = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if line.starts_with('-') {
            rules.push(format!("{table} {line}"));
        } else if let Some(chain) = line.strip_prefix(':') {
            let (name, policy) = chain.split_once(' ').unwrap_or((chain, "-"));
            let policy = policy.split_whitespace().next().unwrap_or("-");
            if !matches!(policy, "-" | "ACCEPT") {
                rules.push(format!("{table} policy {name} {policy}"));
            }
        }
    }
    rules
}

/// Rules with their tables and chains, without counters.
fn nft_rules(text: &str) -> Vec<String> {
    let mut path: Vec<String> = Vec::new();
    let mut rules = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line == "}" {
            path.pop();
        } else if let Some(block) = line.strip_suffix('{') {
            path.push(block.trim().to_owned());
        } else if !line.starts_with("type ") || line.contains("policy drop") {
            rules.push(format!("{} {}", path.join(" "), without_counters(line)));
        }
    }
    rules
}

/// `counter packets 3 bytes 180` → `counter`
fn without_counters(rule: &str) -> String {
    let mut kept = Vec::new();
    let mut words = rule.split_whitespace();
    while let Some(word) = words.next() {
        if matches!(word, "packets" | "bytes") && kept.last().is_some_and(|&last| last == "counter") {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firewall_rules_are_compared_without_counters_and_comments() {
        let save = "# Generated by iptables-save at some time\n*filter\n:INPUT ACCEPT [12:800]\n:FORWARD DROP [0:0]\n\
                    :DOCKER - [0:0]\n-A FORWARD -j DOCKER\nCOMMIT\n*nat\n:PREROUTING ACCEPT [1:2]\nCOMMIT\n";
        assert_eq!(iptables_rules(save), ["filter policy FORWARD DROP", "filter -A FORWARD -j DOCKER"]);
        let ruleset = "table ip a {\n\tchain c {\n\t\ttype filter hook forward priority 0; policy accept;\n\t\tip \
                       saddr 1.2.3.4 counter packets 5 bytes 300 accept\n\t}\n\tchain empty {\n\t}\n}\n";
        assert_eq!(nft_rules(ruleset), ["table ip a chain c ip saddr 1.2.3.4 counter accept"]);
    }

    #[test]
    fn differences_name_their_section() {
        let mut one = Inventory::default();
        one.put("link", ["lo".to_owned(), "a".to_owned()]);
        let mut other = Inventory::default();
        other.put("link", ["lo".to_owned(), "lo".to_owned()]);
        let difference = one.difference(&other);
        assert_eq!(difference.to_string(), "- link: a\n+ link: lo (2)\n");
        assert!(one.difference(&one).is_empty());
    }

    #[test]
    fn links_and_fields_are_read() {
        let text = "1: lo: <LOOPBACK> mtu 65536\n7: veth12@if6: <BROADCAST> mtu 1500\n";
        assert_eq!(links(text), ["lo", "veth12"]);
        assert!(active("Name:   a\nActive:         yes\n") && active("State:          running\n"));
        assert!(!active("Active:   no\n"));
    }
}
