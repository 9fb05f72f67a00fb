//! Waiting for a state with a deadline, never for a time.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

/// Pause between two looks, at first.
const PAUSE: Duration = Duration::from_millis(200);
/// Later: what takes long is not looked at more often than its result is exact, and an emulated host is spared.
const LONG_PAUSE: Duration = Duration::from_secs(1);

/// Outcome of one look.
#[derive(Debug)]
pub enum Seen<T> {
    /// The state is there.
    Done(T),
    /// Not yet; the text says what was seen instead.
    NotYet(String),
}

impl<T> Seen<T> {
    /// `Done` where `condition` holds, else `NotYet` with the state's debug form.
    pub fn when(condition: bool, value: T) -> Self
    where
        T: Debug,
    {
        if condition { Self::Done(value) } else { Self::NotYet(format!("{value:?}")) }
    }
}

/// The state did not come in time.
#[derive(Debug)]
pub struct TimedOut {
    what: String,
    waited: Duration,
    last: String,
}

impl std::fmt::Display for TimedOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "waited {:.1} s for {}; last seen: {}", self.waited.as_secs_f64(), self.what, self.last)
    }
}

impl std::error::Error for TimedOut {}

/// Looks again and again until `look` says [`Seen::Done`], or until `deadline` has passed since the first look. An
/// error of `look` counts as not yet.
///
/// ```
/// # use std::time::Duration;
/// # use edge_tests::wait::{Seen, eventually};
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let path = std::path::Path::new("/run/some.sock");
/// eventually("the socket", Duration::from_secs(5), || async {
///     Ok::<_, std::io::Error>(Seen::when(path.exists(), path))
/// })
/// .await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`TimedOut`] with what was waited for and the state last seen.
pub async fn eventually<T, E, F, Fut>(what: &str, deadline: Duration, mut look: F) -> Result<T, TimedOut>
where
    E: std::fmt::Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Seen<T>, E>>,
{
    let start = Instant::now();
    loop {
        // A look that hangs must not outlive the deadline.
        let left = deadline.saturating_sub(start.elapsed()).max(PAUSE);
        let last = match tokio::time::timeout(left, look()).await {
            Ok(Ok(Seen::Done(value))) => return Ok(value),
            Ok(Ok(Seen::NotYet(state))) => state,
            Ok(Err(error)) => format!("error: {error:#}"),
            Err(_) => "no answer".to_owned(),
        };
        if start.elapsed() >= deadline {
            return Err(TimedOut { what: what.to_owned(), waited: start.elapsed(), last });
        }
        tokio::time::sleep((start.elapsed() / 50).clamp(PAUSE, LONG_PAUSE)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reports_the_last_state_seen() {
        let mut looks = 0;
        let error = eventually("three", Duration::from_millis(300), || {
            looks += 1;
            let now = looks.min(2);
            async move { Ok::<_, std::io::Error>(Seen::when(now == 3, now)) }
        })
        .await
        .unwrap_err();
        assert!(error.to_string().contains("for three; last seen: 2"), "{error}");
    }

    #[tokio::test]
    async fn a_look_that_hangs_ends_with_the_deadline() {
        let wait = eventually("nothing", Duration::from_millis(300), || {
            std::future::pending::<Result<Seen<()>, std::io::Error>>()
        });
        let error = tokio::time::timeout(Duration::from_secs(5), wait).await.unwrap().unwrap_err();
        assert!(error.to_string().contains("no answer"), "{error}");
    }
}
