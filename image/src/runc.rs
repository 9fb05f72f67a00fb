//! What `edge-runc` changes: capabilities that the bounding set lacks disappear from the OCI configuration.
//!
//! docker 20.10 asks for every capability it knows for a privileged container, and runc refuses those that the host
//! cannot give. docker writes `config.json` into the bundle before `create` and a process file before `exec`.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Names by number, from `linux/capability.h`.
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The configuration could not be edited.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// Verb.
        what: &'static str,
        /// File.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no JSON.
    #[error("{} is no JSON", path.display())]
    Json {
        /// File.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// `/proc/self/status` has no `CapBnd`.
    #[error("/proc/self/status has no CapBnd line")]
    NoBoundingSet,
}

/// The file of a command line that holds capabilities, and where in it the process is.
#[derive(Debug, Eq, PartialEq)]
pub enum Target {
    /// `config.json` of a bundle; capabilities at `process.capabilities`.
    Config(PathBuf),
    /// A process file; capabilities at `capabilities`.
    Process(PathBuf),
}

/// The bounding set of this process as a bit mask.
pub fn bounding_set() -> Result<u64, Error> {
    let path = Path::new("/proc/self/status");
    let status =
        std::fs::read_to_string(path).map_err(|source| Error::Io { what: "read", path: path.to_owned(), source })?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).ok_or(Error::NoBoundingSet)?;
    u64::from_str_radix(mask.trim(), 16).map_err(|_| Error::NoBoundingSet)
}

/// Global options of runc that take a value, so that the value is not mistaken for a command.
const GLOBAL_WITH_VALUE: &[&str] = &["criu", "log", "log-format", "root", "rootless"];

/// Which file the command line makes runc read, if any. `create` and `run` read a bundle, by default the current
/// folder; `exec` reads a process file only when told so.
pub fn target(args: &[OsString]) -> Option<Target> {
    let mut at = 0;
    let command = loop {
        let arg = args.get(at)?.to_str()?;
        at += 1;
        if !arg.starts_with('-') {
            break arg;
        }
        if GLOBAL_WITH_VALUE.contains(&arg.trim_start_matches('-')) {
            at += 1;
        }
    };
    let options = &args[at.min(args.len())..];
    match command {
        "exec" => value(options, &["--process", "-process", "-p"]).map(|file| Target::Process(file.into())),
        "create" | "run" => {
            let bundle = value(options, &["--bundle", "-bundle", "-b"]);
            let bundle = bundle.map_or_else(|| PathBuf::from("."), PathBuf::from);
            Some(Target::Config(bundle.join("config.json")))
        }
        _ => None,
    }
}

/// The value of the last option of these names, as `--name value` or `--name=value`, before the first `--`.
fn value(options: &[OsString], names: &[&str]) -> Option<OsString> {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let mut found = None;
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        if option == "--" {
            break;
        }
        if names.iter().any(|name| option == name) {
            found = rest.next().cloned();
            continue;
        }
        let bytes = option.as_bytes();
        if let Some(equals) = bytes.iter().position(|byte| *byte == b'=')
            && names.iter().any(|name| name.as_bytes() == &bytes[..equals])
        {
            found = Some(OsString::from_vec(bytes[equals + 1..].to_vec()));
        }
    }
    found
}

/// Drops from `capabilities` of a process what `bounding` lacks; says whether anything changed. A name that is not
/// known stays, for runc to judge.
pub fn trim(process: &mut Value, bounding: u64) -> bool {
    let lacking = |name: &Value| {
        let number = CAPABILITIES.iter().position(|known| name.as_str() == Some(known));
        number.is_some_and(|number| bounding >> number & 1 == 0)
    };
    let Some(sets) = process.get_mut("capabilities").and_then(Value::as_object_mut) else { return false };
    let mut changed = false;
    for names in sets.values_mut().filter_map(Value::as_array_mut) {
        let before = names.len();
        names.retain(|name| !lacking(name));
        changed |= names.len() != before;
    }
    changed
}

/// Edits the file in place where needed. A missing file is left for runc to complain about.
pub fn edit(target: &Target, bounding: u64) -> Result<(), Error> {
    let (Target::Config(path) | Target::Process(path)) = target;
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|source| Error::Io { what: "read", path: path.clone(), source })?,
    };
    let mut json: Value =
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.clone(), source })?;
    let process = match target {
        Target::Config(_) => json.get_mut("process"),
        Target::Process(_) => Some(&mut json),
    };
    if process.is_some_and(|process| trim(process, bounding)) {
        // In place: docker hands over a file that it may have opened or chosen the mode of.
        std::fs::write(path, json.to_string()).map_err(|source| Error::Io {
            what: "write",
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const WITHOUT_RESOURCE: u64 = 0x1ff_feff_ffff;

    fn of(line: &str) -> Option<Target> {
        target(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn finds_the_file_in_every_argument_form() {
        let config = |dir: &str| Some(Target::Config(Path::new(dir).join("config.json")));
        let process = |file: &str| Some(Target::Process(file.into()));
        assert_eq!(of("--root /r --log l create --bundle /b --pid-file p id"), config("/b"));
        assert_eq!(of("--root=/r create --bundle=/b id"), config("/b"));
        assert_eq!(of("create -b /b id"), config("/b"));
        assert_eq!(of("create -b=/b id"), config("/b"));
        assert_eq!(of("create id"), config("."));
        assert_eq!(of("run --bundle /b id"), config("/b"));
        assert_eq!(of("--systemd-cgroup exec --process /p --detach id"), process("/p"));
        assert_eq!(of("exec --process=/p id"), process("/p"));
        assert_eq!(of("exec -p /p id"), process("/p"));
        assert_eq!(of("exec id sh -- --process /no"), None);
        assert_eq!(of("--root run start create"), None);
        assert_eq!(of("--root run create -b /b id"), config("/b"));
        assert_eq!(of("kill id"), None);
        assert_eq!(of("--version"), None);
    }

    #[test]
    fn drops_what_the_bounding_set_lacks_and_nothing_else() {
        let mut process = json!({"args": ["sh"], "capabilities": {
            "bounding": ["CAP_CHOWN", "CAP_SYS_RESOURCE", "CAP_NEW_ONE"],
            "effective": ["CAP_SYS_RESOURCE"],
            "ambient": []
        }});
        assert!(trim(&mut process, WITHOUT_RESOURCE));
        let expected = json!({"args": ["sh"], "capabilities": {
            "bounding": ["CAP_CHOWN", "CAP_NEW_ONE"], "effective": [], "ambient": []
        }});
        assert_eq!(process, expected);
        assert!(!trim(&mut process, WITHOUT_RESOURCE));
        assert!(!trim(&mut json!({"args": ["sh"]}), 0));
        assert!(!trim(&mut json!({"capabilities": {"bounding": ["CAP_SYS_RESOURCE"]}}), u64::MAX));
        assert!(trim(&mut json!({"capabilities": {"bounding": ["CAP_CHECKPOINT_RESTORE"]}}), 0xff_ffff_ffff));
    }

    #[test]
    fn edits_both_kinds_of_file_and_leaves_a_fitting_one_alone() {
        let dir = tempfile::tempdir().unwrap();
        let capabilities = json!({"bounding": ["CAP_SYS_RESOURCE", "CAP_KILL"]});
        let file = dir.path().join("config.json");
        std::fs::write(&file, json!({"process": {"capabilities": capabilities}}).to_string()).unwrap();
        edit(&Target::Config(file.clone()), WITHOUT_RESOURCE).unwrap();
        let read = |file: &Path| serde_json::from_slice::<Value>(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!(read(&file)["process"]["capabilities"]["bounding"], json!(["CAP_KILL"]));

        let file = dir.path().join("process");
        let text = format!(" {} ", json!({"capabilities": capabilities}));
        std::fs::write(&file, &text).unwrap();
        edit(&Target::Process(file.clone()), u64::MAX).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        edit(&Target::Process(file.clone()), WITHOUT_RESOURCE).unwrap();
        assert_eq!(read(&file)["capabilities"]["bounding"], json!(["CAP_KILL"]));

        edit(&Target::Process(dir.path().join("none")), 0).unwrap();
        std::fs::write(&file, "{").unwrap();
        assert!(edit(&Target::Process(file), 0).is_err());
    }
}
