//! Space in storage pools. Disks are made sparse and grow as guests write, so a pool can become full under running guests.
//! QEMU pauses such a guest at the write that found no space, and writes it again when it is resumed: nothing is lost.

use std::fmt;
use std::time::Duration;

use crate::errors::chain;
use crate::libvirt::{Error, Hypervisor};

/// Reason of every condition that tells of a full pool.
pub const NO_SPACE: &str = "NoSpace";
/// Pause between two looks at a full pool: nothing tells of space that returns.
pub const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// With less than this free, a guest would be paused again at once.
pub const ENOUGH: u64 = 64 << 20;

/// A pool, and what is free in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Space {
    /// libvirt name of the pool.
    pub pool: String,
    /// Its directory.
    pub path: String,
    /// Bytes.
    pub free: u64,
}

/// Looks at pools, each once; one that is not there is left out.
pub fn look<'a>(libvirt: &dyn Hypervisor, pools: impl Iterator<Item = &'a str>) -> Result<Vec<Space>, Error> {
    let mut names: Vec<&str> = pools.collect();
    names.sort_unstable();
    names.dedup();
    for name in &names {
        // libvirt counts what is free when it reads the directory, which it refuses while it makes a volume there. What
        // it counted last is good enough then.
        if let Err(error) = libvirt.refresh_pool(name) {
            tracing::debug!(error = chain(&error), pool = name, "pool not refreshed");
        }
    }
    let found = libvirt.pools()?.into_iter().filter(|pool| names.contains(&pool.name.as_str()));
    Ok(found.map(|pool| Space { pool: pool.name, path: pool.path, free: pool.available }).collect())
}

impl Space {
    /// What a person reads where so many bytes are needed.
    pub fn needs(&self, bytes: u64) -> String {
        let needed = bytes.div_ceil(1 << 20);
        format!("{needed} MiB are needed in {self}; free space there, or make that file system larger")
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, path, free } = self;
        write!(f, "pool {pool} ({path}), which has {} MiB free", free >> 20)
    }
}

/// The fullest of some pools, where it has less than a guest needs.
pub fn short(pools: &[Space]) -> Option<&Space> {
    pools.iter().filter(|space| space.free < ENOUGH).min_by_key(|space| space.free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_pool_is_told_with_what_is_needed_and_free() {
        let space = |pool: &str, free| Space { pool: pool.into(), path: format!("/{pool}"), free };
        let pools = [space("a", ENOUGH), space("b", ENOUGH - 1), space("c", (5 << 20) + 1)];
        assert_eq!(short(&pools[..1]), None);
        let short = short(&pools).unwrap();
        assert_eq!(
            short.needs((64 << 20) - 1),
            "64 MiB are needed in pool c (/c), which has 5 MiB free; free space there, or make that file system larger"
        );
    }
}
