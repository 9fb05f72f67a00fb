//! The host's packet filter, by `nft`, for the networks of guests that are behind the host (type `NAT`).
//!
//! libvirt leaves those networks alone (`forward mode='open'`), because its own rules refuse whatever comes from
//! outside, and the system cluster has to reach the API servers of the clusters that it makes. So it is ours to give
//! guests a way out (masquerading), and to refuse everybody but the system cluster a way in. One table holds it all
//! and is replaced as a whole; its mark tells whether it is current.
//!
//! Where `br_netfilter` is on, as docker has it, these rules also see what guests of one network send each other. That is
//! left alone: nodes of a cluster carry addresses of pods between them, which no network of the site has.
//!
//! docker drops what it does not know of (`FORWARD` is `DROP`), and its chain `DOCKER-USER` is where others say what
//! may pass. An accept there does not overrule our table's refusal.

use edge_api::Instance;
use ipnet::Ipv4Net;

use super::process::{Error, Program};
use crate::bundle::sha256;
use crate::effects::Effect;

/// A network of guests behind the host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Network {
    /// Its bridge.
    pub bridge: String,
    /// The host's address in it, with the prefix length.
    pub subnet: Ipv4Net,
}

/// The packet filter for one instance.
#[derive(Clone, Debug)]
pub struct Firewall {
    instance: Instance,
}

impl Firewall {
    /// For an instance.
    pub fn new(instance: &Instance) -> Self {
        Self { instance: instance.clone() }
    }

    /// Makes it so that guests of `networks` reach out and only the system cluster reaches in. Tells whether it wrote.
    pub async fn ensure(&self, networks: &[Network]) -> Result<bool, Error> {
        let rules = self.rules(networks);
        let mark = mark(&rules);
        let current = self.table().await.is_some_and(|table| table.contains(&mark));
        if !current {
            load(&rules.replace(MARK, &mark)).await?;
        }
        Ok(self.pass_docker(networks).await? || !current)
    }

    /// Takes everything away again. Tells whether there was something.
    pub async fn remove(&self) -> Result<bool, Error> {
        let was = self.table().await.is_some();
        if was {
            let program = Program::new("nft").args(["delete", "table", "inet", &self.name()]);
            program.effect(Effect::RemoveRules).run().await?;
        }
        let mut stale = false;
        for rule in self.docker_rules().await {
            iptables(&["-D", "DOCKER-USER"], &rule).effect(Effect::RefuseDocker).run().await?;
            stale = true;
        }
        Ok(was || stale)
    }

    fn name(&self) -> String {
        format!("pcg-edge-{}", self.instance)
    }

    /// The table as it is; none where it is not there, or where `nft` says nothing.
    async fn table(&self) -> Option<String> {
        let listed = Program::new("nft").args(["list", "table", "inet", &self.name()]).run().await;
        listed.ok().map(|output| output.stdout)
    }

    /// The whole table, with [`MARK`] where its mark goes.
    fn rules(&self, networks: &[Network]) -> String {
        use std::fmt::Write as _;
        let name = self.name();
        let cluster = Ipv4Net::new_assert(self.instance.docker_subnet(), 24);
        let (mut inward, mut outward) = (String::new(), String::new());
        for Network { bridge, subnet } in networks {
            let subnet = subnet.trunc();
            let _ = write!(
                inward,
                "    iifname \"{bridge}\" oifname \"{bridge}\" accept\n    \
                     oifname \"{bridge}\" ct state established,related accept\n    \
                     oifname \"{bridge}\" ip saddr {{ {subnet}, {cluster} }} accept\n    \
                     oifname \"{bridge}\" reject with icmpx type port-unreachable\n",
            );
            let _ = writeln!(
                outward,
                "    oifname != \"{bridge}\" ip saddr {subnet} ip daddr != {subnet} ip daddr != {MULTICAST} masquerade"
            );
        }
        // Declared before it is deleted: the whole replaces what is there, or nothing, in one transaction.
        format!(
            "table inet {name}\ndelete table inet {name}\ntable inet {name} {{\n  chain forward {{\n    \
                 type filter hook forward priority filter; policy accept;\n    counter comment \"{MARK}\"\n{inward}  }}\n  \
                 chain postrouting {{\n    type nat hook postrouting priority srcnat; policy accept;\n{outward}  }}\n}}\n"
        )
    }

    /// Has docker's filter let the networks' packets pass, where docker has one.
    async fn pass_docker(&self, networks: &[Network]) -> Result<bool, Error> {
        if Program::new("iptables").args(["-w", "-n", "-L", "DOCKER-USER"]).run().await.is_err() {
            return Ok(false);
        }
        let there = self.docker_rules().await;
        let wanted: Vec<Vec<String>> = networks
            .iter()
            .flat_map(|n| ["-i", "-o"].map(|direction| self.docker_rule(direction, &n.bridge)))
            .collect();
        let mut wrote = false;
        for stale in there.iter().filter(|rule| !wanted.contains(rule)) {
            iptables(&["-D", "DOCKER-USER"], stale).effect(Effect::RefuseDocker).run().await?;
            wrote = true;
        }
        for missing in wanted.iter().filter(|rule| !there.contains(rule)) {
            iptables(&["-I", "DOCKER-USER"], missing).effect(Effect::PassDocker).run().await?;
            wrote = true;
        }
        Ok(wrote)
    }

    fn docker_rule(&self, direction: &str, bridge: &str) -> Vec<String> {
        [direction, bridge, "-m", "comment", "--comment", &self.name(), "-j", "ACCEPT"].map(str::to_owned).to_vec()
    }

    /// Our rules in docker's chain, as arguments.
    async fn docker_rules(&self) -> Vec<Vec<String>> {
        let listed = Program::new("iptables").args(["-w", "-S", "DOCKER-USER"]).run().await;
        listed.map(|output| self.ours(&output.stdout)).unwrap_or_default()
    }

    fn ours(&self, listing: &str) -> Vec<Vec<String>> {
        let rules = listing.lines().filter_map(|line| line.strip_prefix("-A DOCKER-USER "));
        let words = rules.map(|rule| rule.split_whitespace().map(|w| w.trim_matches('"').to_owned()).collect());
        words.filter(|rule: &Vec<String>| rule.contains(&self.name())).collect()
    }
}

/// Where the mark goes in the rules.
const MARK: &str = "@mark@";
/// Multicast leaves with the address it has.
const MULTICAST: &str = "224.0.0.0/4";

/// A mark for rules: their digest.
fn mark(rules: &str) -> String {
    sha256(rules.as_bytes())
}

async fn load(rules: &str) -> Result<(), Error> {
    use tokio::io::AsyncWriteExt as _;
    let nft = Program::new("nft").args(["-f", "-"]).effect(Effect::LoadRules);
    nft.run_with_input(async |stdin| stdin.write_all(rules.as_bytes()).await).await.map(drop)
}

fn iptables(action: &[&str], rule: &[String]) -> Program {
    Program::new("iptables").args(["-w"]).args(action).args(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks() -> Vec<Network> {
        let network =
            |bridge: &str, subnet: &str| Network { bridge: bridge.to_owned(), subnet: subnet.parse().unwrap() };
        vec![network("edge-abcde", "192.168.150.1/24"), network("edge-fghij", "10.9.8.1/28")]
    }

    #[test]
    fn a_table_for_each_network_and_one_mark() {
        let rules = Firewall::new(&Instance::default()).rules(&networks());
        insta::assert_snapshot!(rules);
        assert_eq!(rules.matches(MARK).count(), 1);
        assert_ne!(mark(&rules), mark(&Firewall::new(&Instance::default()).rules(&networks()[..1])));
    }

    #[test]
    fn only_our_rules_are_found_in_dockers_chain() {
        let firewall = Firewall::new(&Instance::default());
        let listing = "-N DOCKER-USER\n\
            -A DOCKER-USER -i edge-abcde -m comment --comment pcg-edge-edge -j ACCEPT\n\
            -A DOCKER-USER -i other-1 -m comment --comment \"pcg-edge-other\" -j ACCEPT\n\
            -A DOCKER-USER -j RETURN\n";
        assert_eq!(firewall.ours(listing), [firewall.docker_rule("-i", "edge-abcde")]);
    }

    /// In a network namespace of its own, so that the host's filter is not touched.
    #[tokio::test]
    async fn the_kernel_takes_the_table_and_gives_it_back() {
        let rules = Firewall::new(&Instance::default()).rules(&networks());
        let rules = rules.replace(MARK, &mark(&rules));
        let script = "nft -f - && nft list table inet pcg-edge-edge";
        let program = Program::new("unshare").args(["--net", "sh", "-c", script]);
        let listed = program
            .run_with_input(async |stdin| {
                use tokio::io::AsyncWriteExt as _;
                stdin.write_all(rules.as_bytes()).await
            })
            .await
            .unwrap();
        let unmarked = Firewall::new(&Instance::default()).rules(&networks());
        assert!(listed.stdout.contains(&mark(&unmarked)), "{}", listed.stdout);
        assert_eq!(listed.stdout.matches("masquerade").count(), 2, "{}", listed.stdout);
    }
}
