//! What a budget can really have: its limit, less what the rest of the process has open beyond what it had when the
//! budget was sized, and less what running out of descriptors teaches. By that the limit shrinks at once to what is
//! really open, and grows back by equal steps (additive increase; Chiu and Jain 1989). Pure: takes the time and the
//! numbers, owns no clock.

use std::time::Duration;

use crate::clock::Tick;

/// How often the limit grows, and in how many steps it is whole again: after 1.6 s.
pub(crate) const GROWTH_INTERVAL: Duration = Duration::from_millis(100);
const GROWTH_STEPS: usize = 16;

/// The limit in force, where it is lower than the configured one.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    lowered: Option<Lowered>,
    /// What the rest of the process leaves, if that is measured.
    ceiling: Option<usize>,
    /// What it left at the look before.
    ceiling_before: Option<usize>,
}

#[derive(Debug)]
struct Lowered {
    limit: usize,
    /// What it was lowered to.
    floor: usize,
    grown_at: Tick,
}

impl Audit {
    pub(crate) fn effective(&self, limit: usize) -> usize {
        let taught = self.lowered.as_ref().map_or(limit, |lowered| lowered.limit.min(limit));
        self.ceiling.map_or(taught, |ceiling| taught.min(ceiling))
    }

    /// Whether the limit is lower than the configured one, and so may grow.
    pub(crate) fn is_lowered(&self, limit: usize) -> bool {
        self.lowered.is_some() || self.ceiling.is_some_and(|ceiling| ceiling < limit)
    }

    /// Slots that the rest of the process leaves for longer than from one look to the next, if that is known.
    pub(crate) fn lasting_ceiling(&self) -> Option<usize> {
        Some(self.ceiling?.max(self.ceiling_before?))
    }

    /// Whether that is since the process ran out, and not by what was measured alone.
    pub(crate) fn is_taught(&self) -> bool {
        self.lowered.is_some()
    }

    /// So many slots are what the rest of the process leaves. Returns whether that is news.
    pub(crate) fn leave(&mut self, ceiling: usize) -> bool {
        let lasting = self.lasting_ceiling();
        self.ceiling_before = self.ceiling.replace(ceiling);
        self.ceiling_before != Some(ceiling) || self.lasting_ceiling() != lasting
    }

    /// Forgets what running out has taught, and not what was measured.
    pub(crate) fn forget(&mut self) {
        self.lowered = None;
    }

    /// A dial found no descriptor while `others` slots were out besides its own. Where there were none, the limit
    /// is zero until it grows: that is how long to wait before the next try.
    pub(crate) fn ran_out(&mut self, limit: usize, others: usize, now: Tick) {
        let lowered = others.min(limit);
        self.lowered = Some(Lowered { limit: lowered, floor: lowered, grown_at: now });
    }

    /// Grows the limit by as many steps as are due. Returns whether it did.
    pub(crate) fn grow(&mut self, limit: usize, now: Tick) -> bool {
        let Some(lowered) = &mut self.lowered else { return false };
        let steps = now.since(lowered.grown_at).as_nanos() / GROWTH_INTERVAL.as_nanos();
        let steps = usize::try_from(steps).unwrap_or(usize::MAX);
        if steps == 0 {
            return false;
        }
        let step = limit.saturating_sub(lowered.floor).div_ceil(GROWTH_STEPS).max(1);
        lowered.limit = lowered.limit.saturating_add(step.saturating_mul(steps));
        lowered.grown_at = now;
        if lowered.limit >= limit {
            self.lowered = None;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_shrinks_at_once_and_is_whole_again_within_two_seconds() {
        for (limit, others) in [(256, 100), (256, 255), (1000, 0), (1, 0), (1_000_000_000, 7)] {
            let mut audit = Audit::default();
            assert_eq!(audit.effective(limit), limit);
            audit.ran_out(limit, others, Tick::from_millis(0));
            assert_eq!(audit.effective(limit), others);
            let mut before = audit.effective(limit);
            for tenth in 1..=20 {
                audit.grow(limit, Tick::from_millis(tenth * 100));
                assert!(audit.effective(limit) >= before, "never shrinks by itself");
                before = audit.effective(limit);
            }
            assert_eq!(audit.effective(limit), limit);
            assert!(!audit.is_lowered(limit));
        }
    }

    #[test]
    fn what_the_rest_of_the_process_has_lowers_the_limit_and_gives_it_back_at_once() {
        let mut audit = Audit::default();
        assert!(audit.leave(200));
        assert_eq!(audit.lasting_ceiling(), None, "one look may err");
        assert!(audit.leave(200), "it lasts");
        assert_eq!(audit.lasting_ceiling(), Some(200));
        assert!(!audit.leave(200), "no news");
        assert_eq!((audit.effective(100), audit.is_lowered(100)), (100, false));
        assert!(audit.leave(40));
        assert_eq!((audit.effective(100), audit.is_lowered(100)), (40, true));
        assert_eq!(audit.lasting_ceiling(), Some(200));
        audit.ran_out(100, 30, Tick::from_millis(0));
        assert_eq!(audit.effective(100), 30, "the lower of both");
        assert!(audit.is_taught());
        audit.forget();
        assert_eq!((audit.effective(100), audit.is_lowered(100)), (40, true), "what was measured is so");
        assert!(!audit.is_taught());
        audit.leave(100);
        assert_eq!((audit.effective(100), audit.is_lowered(100)), (100, false));
    }

    #[test]
    fn growth_that_nobody_asked_for_in_time_is_made_up_for() {
        let mut audit = Audit::default();
        audit.ran_out(160, 0, Tick::from_millis(0));
        assert!(!audit.grow(160, Tick::from_millis(99)));
        assert!(audit.grow(160, Tick::from_millis(500)));
        assert_eq!(audit.effective(160), 5 * 10);
    }

    #[test]
    fn a_limit_that_is_raised_meanwhile_is_whole_as_soon() {
        let mut audit = Audit::default();
        audit.ran_out(4, 3, Tick::from_millis(0));
        for tenth in 1..=16 {
            audit.grow(10_000, Tick::from_millis(tenth * 100));
        }
        assert_eq!(audit.effective(10_000), 10_000);
    }

    #[test]
    fn running_out_again_shrinks_again() {
        let mut audit = Audit::default();
        audit.ran_out(100, 50, Tick::from_millis(0));
        audit.ran_out(100, 20, Tick::from_millis(10));
        assert_eq!(audit.effective(100), 20);
        audit.ran_out(10, 50, Tick::from_millis(20));
        assert_eq!(audit.effective(10), 10, "never above the limit");
    }
}
