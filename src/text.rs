//! How numbers and spans of time read in messages. Knows nothing of what they are numbers of.

use std::fmt;
use std::time::Duration;

/// So many of something: `1 slot`, `2 slots`.
pub(crate) struct Number(pub(crate) usize, pub(crate) &'static str);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(n, word) = self;
        write!(f, "{n} {word}{}", form(*n, "", "s"))
    }
}

/// The form that goes with so many.
pub(crate) fn form(n: usize, one: &'static str, several: &'static str) -> &'static str {
    if n == 1 { one } else { several }
}

/// A span of time, rounded down to what its reader cares for.
pub(crate) struct Rounded(pub(crate) Duration);

impl fmt::Display for Rounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MINUTE: u64 = 60;
        const HOUR: u64 = 60 * MINUTE;
        let tenths = |unit: u64| self.0.as_millis() / u128::from(unit * 100);
        let mut in_tenths = |tenths: u128, unit| write!(f, "{}.{}{unit}", tenths / 10, tenths % 10);
        match self.0.as_secs() {
            0 => write!(f, "{}ms", self.0.as_millis()),
            secs if secs < 2 * MINUTE => in_tenths(tenths(1), "s"),
            secs if secs < 2 * HOUR => write!(f, "{}min", secs / MINUTE),
            _ => in_tenths(tenths(HOUR), "h"),
        }
    }
}

/// ` after` a span of time, or nothing if there was none to speak of.
pub(crate) struct After(pub(crate) Duration);

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            0 => Ok(()),
            _ => write!(f, " after {}", Rounded(self.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_as_people_say_them() {
        let said = |millis| Rounded(Duration::from_millis(millis)).to_string();
        let spans = [0, 999, 1_000, 1_999, 119_999, 120_000, 7_199_999, 7_200_000, 9_000_000];
        let expected = ["0ms", "999ms", "1.0s", "1.9s", "119.9s", "2min", "119min", "2.0h", "2.5h"];
        assert_eq!(spans.map(said), expected);
        assert!(Rounded(Duration::MAX).to_string().ends_with('h'));
        assert_eq!(After(Duration::from_micros(999)).to_string(), "");
        assert_eq!(After(Duration::from_millis(40)).to_string(), " after 40ms");
    }
}
