//! Named points before and after every side effect of a program, at which a test ends it with SIGKILL (law 1).
//!
//! A program names its effects once, with [`effects!`], and lets each pass [`around`] or [`around_async`]. A test takes
//! the points from the same list ([`points`]), and starts the program with those it wants in [`VARIABLE`]: at the first
//! of them the program writes its name to standard error and is gone. Release builds have no points.

pub mod api;

use std::fmt;
use std::io::Write as _;
use std::str::FromStr;
use std::sync::LazyLock;

/// Environment variable with the points at which to end, separated by commas.
pub const VARIABLE: &str = "PCG_EDGE_CRASH_AT";
/// What comes before a point's name in the last line on standard error.
pub const LAST_WORDS: &str = "crash point ";

/// The side effects of a program.
pub trait Effects: Copy + 'static {
    /// All of them.
    const ALL: &'static [Self];
    /// Its name, without spaces and commas.
    fn name(self) -> &'static str;
}

/// Names the side effects of a program: an enum that is [`Effects`].
#[macro_export]
macro_rules! effects {
    ($(#[$about:meta])* $visible:vis enum $type:ident { $($(#[$doc:meta])* $effect:ident = $name:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        $visible enum $type { $($(#[$doc])* $effect,)+ }

        impl $crate::Effects for $type {
            const ALL: &'static [Self] = &[$(Self::$effect,)+];

            fn name(self) -> &'static str {
                match self { $(Self::$effect => $name,)+ }
            }
        }
    };
}

/// Where a process can end.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Point {
    /// Name of the effect.
    pub effect: String,
    /// On which side of it.
    pub side: Side,
}

/// On which side of an effect.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Side {
    /// It has not begun.
    Before,
    /// It has succeeded or failed, and nothing is known of that.
    After,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            Side::Before => "before",
            Side::After => "after",
        };
        write!(f, "{side}:{}", self.effect)
    }
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (side, effect) = match text.split_once(':') {
            Some(("before", effect)) => (Side::Before, effect),
            Some(("after", effect)) => (Side::After, effect),
            _ => return Err(format!("{text:?}: expected before:EFFECT or after:EFFECT")),
        };
        Ok(Self { effect: effect.to_owned(), side })
    }
}

/// Both points of every effect.
pub fn points<E: Effects>() -> Vec<Point> {
    let both = |effect: &E| [Side::Before, Side::After].map(|side| Point { effect: effect.name().to_owned(), side });
    E::ALL.iter().flat_map(both).collect()
}

/// Carries an effect out, between its points.
pub fn around<T>(effect: impl Effects, act: impl FnOnce() -> T) -> T {
    reach(effect, Side::Before);
    let outcome = act();
    reach(effect, Side::After);
    outcome
}

/// Carries an effect out, between its points.
pub async fn around_async<T>(effect: impl Effects, act: impl Future<Output = T>) -> T {
    reach(effect, Side::Before);
    let outcome = act.await;
    reach(effect, Side::After);
    outcome
}

/// A side effect that its program has no name for: a debug build ends here, so that the list is whole.
pub fn unlisted(name: &str) {
    if cfg!(debug_assertions) {
        die(&format!("{name} is not in the list of side effects"));
    }
}

static ARMED: LazyLock<Vec<Point>> = LazyLock::new(|| {
    let text = std::env::var(VARIABLE).unwrap_or_default();
    let point = |text: &str| text.parse().unwrap_or_else(|error| die(&format!("{VARIABLE}: {error}")));
    text.split(',').filter(|text| !text.is_empty()).map(point).collect()
});

fn reach(effect: impl Effects, side: Side) {
    if cfg!(debug_assertions) && ARMED.iter().any(|point| point.effect == effect.name() && point.side == side) {
        die(&format!("{LAST_WORDS}{}", Point { effect: effect.name().to_owned(), side }));
    }
}

/// Ends the process at once: no destructor, no handler, no buffer runs.
fn die(words: &str) -> ! {
    // In one piece, among the lines of other threads; it may have nobody who reads it.
    let _unread = std::io::stderr().write_all(format!("{words}\n").as_bytes());
    let _gone = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use super::*;

    effects! {
        /// For the test below.
        enum Example {
            Write = "write",
            Remove = "remove",
        }
    }

    #[test]
    fn every_effect_has_two_points_and_they_are_read_back() {
        let points = points::<Example>();
        let names: Vec<String> = points.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["before:write", "after:write", "before:remove", "after:remove"]);
        let read: Vec<Point> =
            names.iter().map(|name| name.parse().unwrap_or_else(|error| panic!("{error}"))).collect();
        assert_eq!(read, points);
        assert!("amid:write".parse::<Point>().is_err());
    }

    /// Starts itself once more, as the process that ends.
    #[test]
    fn a_process_ends_at_its_point() {
        if std::env::var_os(VARIABLE).is_some() {
            around(Example::Write, || println!("written"));
            around(Example::Remove, || println!("removed"));
            return;
        }
        let run = |armed: &str| {
            let program = std::env::current_exe().unwrap_or_else(|error| panic!("{error}"));
            let mut child = Command::new(program);
            child.args(["--exact", "tests::a_process_ends_at_its_point", "--nocapture"]).env(VARIABLE, armed);
            child.output().unwrap_or_else(|error| panic!("{error}"))
        };
        let ended = run("before:remove,after:remove");
        assert_eq!(ended.status.signal(), Some(9), "{ended:?}");
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert!(said.contains("written") && !said.contains("removed"), "{said}");
        assert!(String::from_utf8_lossy(&ended.stderr).contains("crash point before:remove"), "{ended:?}");
        let unarmed = run("");
        assert!(
            unarmed.status.success() && String::from_utf8_lossy(&unarmed.stdout).contains("removed"),
            "{unarmed:?}"
        );
    }
}
