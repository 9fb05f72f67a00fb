//! The ledger of faults that tests write (`edge_tests::faults`): printed at the end, and held against what
//! `docs/reliability.md` says.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::table::human;
use crate::workspace;

const DOCUMENT: &str = "docs/reliability.md";

/// What became of one kind of fault.
#[derive(Debug, Eq, PartialEq)]
struct Row {
    fault: String,
    tried: u32,
    survived: u32,
    /// None where no try was timed.
    slowest: Option<Duration>,
}

/// An empty ledger, in cargo's target folder.
pub fn begin() -> Result<PathBuf> {
    let ledger = workspace::target()?.join("faults.tsv");
    fs::write(&ledger, "").with_context(|| ledger.display().to_string())?;
    Ok(ledger)
}

/// Prints the ledger. A fault that the document does not name is an error; with `all` played, so is one that only the
/// document names.
pub fn end(ledger: &Path, all: bool) -> Result<()> {
    let rows = rows(&fs::read_to_string(ledger).with_context(|| ledger.display().to_string())?)?;
    if rows.is_empty() {
        return Ok(());
    }
    eprint!("\n{}", shown(&rows));
    let path = workspace::root().join(DOCUMENT);
    let promised = promised(&fs::read_to_string(&path).with_context(|| path.display().to_string())?);
    let unnamed = rows.iter().map(|row| &row.fault).find(|fault| !promised.contains(fault));
    anyhow::ensure!(unnamed.is_none(), "{DOCUMENT} has no row for the fault {:?}", unnamed.map_or("", String::as_str));
    let unplayed = promised.iter().find(|fault| all && !rows.iter().any(|row| row.fault == **fault));
    anyhow::ensure!(unplayed.is_none(), "{DOCUMENT} has a row for a fault that no test played: {unplayed:?}");
    Ok(())
}

fn rows(ledger: &str) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for line in ledger.lines() {
        let cells: Vec<_> = line.split('\t').collect();
        let [fault, tried, survived, seconds] = cells[..] else {
            anyhow::bail!("a line of the ledger of faults cannot be read: {line:?}");
        };
        let (tried, survived): (u32, u32) = (tried.parse()?, survived.parse()?);
        let took = if seconds.is_empty() { None } else { Some(Duration::try_from_secs_f64(seconds.parse()?)?) };
        match rows.iter_mut().find(|row| row.fault == fault) {
            Some(row) => {
                row.tried += tried;
                row.survived += survived;
                row.slowest = row.slowest.max(took);
            }
            None => rows.push(Row { fault: fault.to_owned(), tried, survived, slowest: took }),
        }
    }
    Ok(rows)
}

fn shown(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.fault.chars().count()).max().unwrap_or(0).max("fault".len());
    let head = format!("  {:width$}  {:>5}  {:>8}  {:>11}\n", "fault", "tried", "survived", "slowest");
    let lines = rows.iter().map(|row| {
        let Row { fault, tried, survived, slowest } = row;
        let verdict = if survived < tried { "  NOT SURVIVED" } else { "" };
        let slowest = slowest.map(human).unwrap_or_default();
        format!("  {fault:width$}  {tried:>5}  {survived:>8}  {slowest:>11}{verdict}\n")
    });
    std::iter::once(head).chain(lines).collect()
}

/// First column of the document's first table.
fn promised(document: &str) -> Vec<String> {
    let rows = document.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    rows.skip(2).filter_map(|row| Some(row.split('|').nth(1)?.trim().to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_one_fault_are_one_row() {
        let rows = rows("a\t1\t1\t1.5\nb\t2\t0\t\na\t1\t1\t0.5\n").unwrap();
        assert_eq!(
            shown(&rows),
            "  fault  tried  survived      slowest\n  \
               a          2         2        1.5 s\n  \
               b          2         0               NOT SURVIVED\n"
        );
        assert!(super::rows("a\t1\n").unwrap_err().to_string().contains("cannot be read"));
    }

    #[test]
    fn the_first_table_is_what_is_promised() {
        let document =
            "# Title\n\n| fault | tried |\n|---|---|\n| a | 1 |\n| b, and c | 2 |\n\n| other |\n|---|\n| d |\n";
        assert_eq!(promised(document), ["a", "b, and c"]);
        let ours = fs::read_to_string(workspace::root().join(DOCUMENT)).unwrap();
        assert!(promised(&ours).len() > 10, "{:?}", promised(&ours));
    }
}
