//! What guests write to their serial consoles lies below the root, a file per machine. virtlogd bounds each file; those of
//! machines that are gone stay for a week, for whoever wants to know why, and are removed then.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::effects::Effect;

const KEPT: Duration = Duration::from_hours(7 * 24);

/// Removes the old logs of machines that are none of these; returns their names. Where no machine is known at all, none
/// is removed: the answer may be that of a cluster that has lost its memory.
///
/// # Errors
/// The folder cannot be read, or a file not removed.
pub fn prune(folder: &Path, machines: &BTreeSet<String>, now: SystemTime) -> io::Result<Vec<String>> {
    let mut removed = Vec::new();
    if machines.is_empty() {
        return Ok(removed);
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // NAME.log, and NAME.log.0 and so on where virtlogd has begun another.
        let Some((machine, rotation)) = name.rsplit_once(".log") else { continue };
        let is_log = rotation.is_empty() || rotation.strip_prefix('.').is_some_and(|n| n.parse::<u32>().is_ok());
        let old = now.duration_since(entry.metadata()?.modified()?).is_ok_and(|age| age > KEPT);
        if is_log && old && !machines.contains(machine) {
            Effect::RemoveFile.around(|| fs::remove_file(entry.path()))?;
            removed.push(name);
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_logs_of_machines_that_are_gone_go() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        for (name, days) in [
            ("here.log", 30),
            ("gone.log", 8),
            ("gone.log.0", 9),
            ("late.log", 6),
            ("notes.txt", 30),
            ("x.log.old", 30),
        ] {
            let file = fs::File::create(folder.path().join(name)).unwrap();
            file.set_modified(now - Duration::from_hours(days * 24)).unwrap();
        }
        let left = || {
            let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert!(prune(folder.path(), &BTreeSet::new(), now).unwrap().is_empty(), "nobody is known");
        let mut removed = prune(folder.path(), &BTreeSet::from(["here".to_owned()]), now).unwrap();
        removed.sort();
        assert_eq!(removed, ["gone.log", "gone.log.0"]);
        assert_eq!(left(), ["here.log", "late.log", "notes.txt", "x.log.old"]);
    }
}
