//! Spans of time as people read them.

use jiff::Timestamp;

/// A span of time in its two biggest units: `43s`, `2m05s`, `3h12m`, `5d4h`. One that ends before it began, because a
/// clock was set back, is `0s`.
pub fn span(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.as_second().saturating_sub(from.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_units() {
        let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).unwrap();
        let span = |seconds| span(at(0), at(seconds));
        let shown = [span(0), span(59), span(125), span(11_520), span(446_400), span(-5)];
        assert_eq!(shown, ["0s", "59s", "2m05s", "3h12m", "5d4h", "0s"]);
    }
}
