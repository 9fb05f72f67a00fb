//! Debian packages: what is missing is installed, what is there is left alone. Debian 12 takes the hypervisor (and Go,
//! where it is needed) from backports.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{command, on_path, quiet};

/// A package, and what makes it unnecessary.
struct Package {
    name: &'static str,
    /// On Debian 12 from backports, in at least this version.
    backport: Option<&'static str>,
    /// Programs that another packaging may have brought already (docker-ce has all of docker.io's).
    programs: &'static [&'static str],
}

const fn plain(name: &'static str) -> Package {
    Package { name, backport: None, programs: &[] }
}

const fn backport(name: &'static str, since: &'static str) -> Package {
    Package { name, backport: Some(since), programs: &[] }
}

const PACKAGES: &[Package] = &[
    backport("qemu-system-x86", "1:10"),
    backport("qemu-utils", "1:10"),
    backport("libvirt-daemon-system", "11"),
    backport("libvirt-clients", "11"),
    backport("libvirt-dev", "11"),
    Package { name: "docker.io", backport: None, programs: &["dockerd", "docker"] },
    Package { name: "runc", backport: None, programs: &["runc"] },
    plain("busybox-static"),
    plain("catatonit"),
    plain("cpio"),
    plain("dnsmasq-base"),
    plain("e2fsprogs"),
    // libFuzzer is built from its sources.
    Package { name: "g++", backport: None, programs: &["g++"] },
    plain("iproute2"),
    plain("iptables"),
    // virt-xml-validate calls xmllint.
    plain("libxml2-utils"),
    plain("mmdebstrap"),
    plain("nftables"),
    plain("pkg-config"),
    plain("skopeo"),
    plain("xz-utils"),
    plain("zstd"),
];

/// Since Debian 13 the client is a package of its own.
const DOCKER_CLIENT: Package = Package { name: "docker-cli", backport: None, programs: &["docker"] };

/// With `GOTOOLCHAIN=auto` any Go from here on fetches the version that the pins ask for.
const GO_MINIMUM: (u32, u32) = (1, 21);

const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/pcg-edge-backports.sources";

/// Installs what is missing; returns what was installed.
pub fn ensure() -> Result<Vec<String>> {
    let release = Release::read(Path::new("/etc/os-release"))?;
    let (newer, rest) = missing(&release)?;
    if newer.is_empty() && rest.is_empty() {
        return Ok(Vec::new());
    }
    if !release.known() {
        let names = [newer, rest].concat().join(" ");
        bail!(
            "this host is {}; packages are known for Debian 12 and 13. Install what these names mean there: {names}",
            release.pretty
        );
    }
    if release.is_12() {
        ensure_backports()?;
    }
    eprintln!("    installing {}", [newer.clone(), rest.clone()].concat().join(" "));
    quiet(apt().arg("update")).context("apt-get update")?;
    if !newer.is_empty() {
        let mut install = apt();
        install.args(["install", "-y", "--no-install-recommends"]);
        if release.is_12() {
            install.args(["-t", "bookworm-backports"]);
        }
        quiet(install.args(&newer)).context("installing packages")?;
    }
    if !rest.is_empty() {
        quiet(apt().args(["install", "-y", "--no-install-recommends"]).args(&rest)).context("installing packages")?;
    }
    let (newer_left, rest_left) = missing(&release)?;
    let left = [newer_left, rest_left].concat();
    anyhow::ensure!(left.is_empty(), "apt-get succeeded, yet these are not installed: {}", left.join(" "));
    Ok([newer, rest].concat())
}

/// Missing packages: those that Debian 12 takes from backports, and the others.
fn missing(release: &Release) -> Result<(Vec<String>, Vec<String>)> {
    let installed = installed()?;
    let (mut newer, mut rest) = (Vec::new(), Vec::new());
    let client = (!release.is_12()).then_some(&DOCKER_CLIENT);
    for package in PACKAGES.iter().chain(client) {
        let there = match (installed.get(package.name), package.backport) {
            (Some(version), Some(since)) => at_least(version, since)?,
            (Some(_), None) => true,
            (None, _) => !package.programs.is_empty() && package.programs.iter().all(|p| on_path(p)),
        };
        if !there {
            let list = if package.backport.is_some() { &mut newer } else { &mut rest };
            list.push(package.name.to_owned());
        }
    }
    if !go_is_usable() && !installed.contains_key("golang-go") {
        newer.push("golang-go".to_owned());
    }
    Ok((newer, rest))
}

/// Versions of the packages that are wholly installed.
fn installed() -> Result<BTreeMap<String, String>> {
    let format = "-f=${Package}\t${db:Status-Status}\t${Version}\n";
    let list = quiet(command("dpkg-query").args(["-W", format])).context("this needs a Debian host")?;
    let rows = list.lines().filter_map(|line| {
        let mut fields = line.split('\t');
        let (name, status, version) = (fields.next()?, fields.next()?, fields.next()?);
        (status == "installed").then(|| (name.to_owned(), version.to_owned()))
    });
    Ok(rows.collect())
}

fn at_least(version: &str, since: &str) -> Result<bool> {
    let status = command("dpkg").args(["--compare-versions", version, "ge", since]).status().context("dpkg")?;
    Ok(status.success())
}

fn go_is_usable() -> bool {
    let version = quiet(command("go").arg("version").env("GOTOOLCHAIN", "local")).unwrap_or_default();
    parse_go(&version).is_some_and(|found| found >= GO_MINIMUM)
}

/// `go version go1.26.8 linux/amd64` → (1, 26)
fn parse_go(version: &str) -> Option<(u32, u32)> {
    let number = version.split_whitespace().find_map(|word| word.strip_prefix("go1."))?;
    let minor = number.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((1, minor.parse().ok()?))
}

fn apt() -> Command {
    let mut apt = command("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
    apt.args(["-o", "Dpkg::Options::=--force-confold"]);
    apt
}

/// What `/etc/os-release` says.
struct Release {
    id: String,
    version: String,
    pretty: String,
}

impl Release {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches('"').to_owned()
        };
        Ok(Self { id: value("ID"), version: value("VERSION_ID"), pretty: value("PRETTY_NAME") })
    }

    fn known(&self) -> bool {
        self.id == "debian" && matches!(self.version.as_str(), "12" | "13")
    }

    fn is_12(&self) -> bool {
        self.id == "debian" && self.version == "12"
    }
}

/// Adds a source for backports beside the host's own, from the same place with the same key, where there is none.
fn ensure_backports() -> Result<()> {
    let mut texts = Vec::new();
    let mut files = vec![Path::new("/etc/apt/sources.list").to_owned()];
    if let Ok(dir) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(dir.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.sort();
    for file in files {
        let kind = file.extension().and_then(|e| e.to_str()).unwrap_or_default().to_owned();
        if let ("sources" | "list", Ok(text)) = (kind.as_str(), fs::read_to_string(&file)) {
            texts.push((kind == "sources", text));
        }
    }
    match backports_source(&texts) {
        Backports::There => Ok(()),
        Backports::Add(text) => {
            fs::write(BACKPORTS_FILE, text).with_context(|| BACKPORTS_FILE.to_owned())?;
            eprintln!("    added {BACKPORTS_FILE}");
            Ok(())
        }
        Backports::Unknown => bail!("no source for Debian 12 (bookworm) in /etc/apt to derive bookworm-backports from"),
    }
}

#[derive(Debug, PartialEq)]
enum Backports {
    There,
    Add(String),
    Unknown,
}

/// Looks through apt's sources, each in deb822 form (`true`) or as one-line entries.
fn backports_source(texts: &[(bool, String)]) -> Backports {
    let mut found = None;
    for (deb822, text) in texts {
        let entries = if *deb822 { deb822_entries(text) } else { line_entries(text) };
        for (uris, suites, signed_by) in entries {
            if suites.iter().any(|suite| suite == "bookworm-backports") {
                return Backports::There;
            }
            if suites.iter().any(|suite| suite == "bookworm") && found.is_none() {
                let key = signed_by.map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
                found = Some(format!("Types: deb\nURIs: {uris}\nSuites: bookworm-backports\nComponents: main\n{key}"));
            }
        }
    }
    found.map_or(Backports::Unknown, Backports::Add)
}

type Entry = (String, Vec<String>, Option<String>);

fn deb822_entries(text: &str) -> Vec<Entry> {
    let stanzas = text.split("\n\n").map(|stanza| {
        let mut fields = BTreeMap::<String, String>::new();
        for line in stanza.lines().filter(|line| !line.starts_with('#')) {
            if let Some((key, value)) = line.split_once(':').filter(|_| !line.starts_with(' ')) {
                fields.insert(key.to_ascii_lowercase(), value.trim().to_owned());
            }
        }
        fields
    });
    let deb = |fields: &BTreeMap<String, String>| {
        fields.get("types").is_some_and(|types| types.split_whitespace().any(|t| t == "deb"))
            && fields.get("enabled").is_none_or(|enabled| enabled != "no")
    };
    let entries = stanzas.filter(deb).filter_map(|mut fields| {
        let suites = fields.get("suites")?.split_whitespace().map(str::to_owned).collect();
        // An inline key has an empty first line; apt knows Debian's keys without it.
        let key = fields.remove("signed-by").filter(|key| key.starts_with('/'));
        Some((fields.remove("uris")?, suites, key))
    });
    entries.collect()
}

fn line_entries(text: &str) -> Vec<Entry> {
    let entries = text.lines().filter_map(|line| {
        let line = line.trim().strip_prefix("deb ")?.trim();
        let (options, rest) = match line.strip_prefix('[') {
            Some(line) => line.split_once(']')?,
            None => ("", line),
        };
        let mut words = rest.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        let key = options.split_whitespace().find_map(|o| o.strip_prefix("signed-by="));
        Some((uri.to_owned(), vec![suite.to_owned()], key.map(str::to_owned)))
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "Types: deb\n# comment: with a colon\nURIs: http://mirror.example/debian\nSuites: bookworm \
                        bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/k.gpg\n\nTypes: deb\nURIs: \
                        http://mirror.example/security\nSuites: bookworm-security\nComponents: main\n";

    #[test]
    fn backports_come_from_the_hosts_own_mirror() {
        let want = "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\nComponents: main\n\
                    Signed-By: /usr/share/keyrings/k.gpg\n";
        assert_eq!(backports_source(&[(true, HOST.into())]), Backports::Add(want.into()));
        let lines = "# deb http://no.example/debian bookworm main\n\
                     deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian bookworm main\n";
        assert_eq!(backports_source(&[(false, lines.into())]), Backports::Add(want.into()));
    }

    #[test]
    fn backports_are_not_added_twice_nor_from_nowhere() {
        let there = "deb http://mirror.example/debian bookworm-backports main\n";
        assert_eq!(backports_source(&[(true, HOST.into()), (false, there.into())]), Backports::There);
        assert_eq!(backports_source(&[(true, HOST.replace("bookworm", "trixie"))]), Backports::Unknown);
        let off = HOST.replace("Types: deb\n", "Types: deb\nEnabled: no\n");
        assert_eq!(backports_source(&[(true, off)]), Backports::Unknown);
    }

    #[test]
    fn go_versions_are_told_apart() {
        assert_eq!(parse_go("go version go1.26.8 linux/amd64\n"), Some((1, 26)));
        assert_eq!(parse_go("go version go1.19 linux/amd64"), Some((1, 19)));
        assert_eq!(parse_go("go version go1.27rc1 linux/amd64"), Some((1, 27)));
        assert_eq!(parse_go("sh: go: not found"), None);
    }
}
