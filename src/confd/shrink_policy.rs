//! Decides whether a smaller set of keys may replace the one that a file was rendered from.
//!
//! An empty or shrunken set is true when members were removed, and false when the store was wiped, restored, or came
//! back from an outage that let all leases end at once. The rules, in their order:
//!
//! 1. Fewer items than `min_items` never replace anything.
//! 2. As many items as before, or more, may.
//! 3. From a store that is another or an older one than last time, an empty set never replaces a filled one, and a
//!    smaller one only after the store has been healthy for the hold time.
//! 4. A smaller set needs a store that has been healthy for the hold time.
//! 5. An empty set must also have been empty for the hold time.
//! 6. A file that is there and that nobody remembers, from another program or before the records were lost, counts as
//!    rendered from [`UNKNOWN`] items: more than any set has.

use std::time::Duration;

/// How many items a file was rendered from that is not remembered.
pub const UNKNOWN: usize = usize::MAX;

/// What is known when a set is judged. Times are what they are at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// How many items the set has.
    pub items: usize,
    /// How many the file was rendered from; nothing if it never was.
    pub applied: Option<usize>,
    /// The resource's `min_items`.
    pub min_items: usize,
    /// Whether the store is another or an older one than the one last applied from.
    pub is_other_store: bool,
    /// How long the store has answered with a quorum.
    pub healthy_for: Duration,
    /// How long the set has been smaller than the applied one.
    pub smaller_for: Duration,
    /// The hold time.
    pub hold: Duration,
}

/// What may be done with a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Render it.
    Apply,
    /// Keep the file; look again after this time at the latest.
    Hold(Reason, Duration),
}

/// Why a set is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It has fewer items than `min_items`.
    BelowMinimum,
    /// It is smaller than the applied one, and the store is not trusted yet.
    Shrunken,
    /// It is empty, and comes from another or an older store.
    Wiped,
}

/// How soon a set that cannot be used is looked at again; any change comes sooner.
const LATER: Duration = Duration::from_secs(30);

/// Judges a set.
pub fn judge(case: &Case) -> Verdict {
    let applied = case.applied.unwrap_or(0);
    if case.items < case.min_items {
        return Verdict::Hold(Reason::BelowMinimum, LATER);
    }
    if case.items >= applied {
        return Verdict::Apply;
    }
    if case.items == 0 && case.is_other_store {
        return Verdict::Hold(Reason::Wiped, LATER);
    }
    let waited = if case.items == 0 { case.healthy_for.min(case.smaller_for) } else { case.healthy_for };
    match case.hold.checked_sub(waited) {
        Some(left) if !left.is_zero() => Verdict::Hold(Reason::Shrunken, left),
        _ => Verdict::Apply,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn case(items: usize, applied: usize) -> Case {
        Case {
            items,
            applied: Some(applied),
            min_items: 0,
            is_other_store: false,
            healthy_for: S(100),
            smaller_for: S(0),
            hold: S(5),
        }
    }

    #[test]
    fn a_healthy_store_may_lose_members_at_once() {
        assert_eq!(judge(&case(2, 3)), Verdict::Apply);
        assert_eq!(judge(&case(3, 3)), Verdict::Apply);
        assert_eq!(judge(&case(5, 3)), Verdict::Apply);
        assert_eq!(judge(&Case { applied: None, ..case(0, 0) }), Verdict::Apply);
    }

    #[test]
    fn an_empty_set_must_last() {
        assert_eq!(judge(&case(0, 3)), Verdict::Hold(Reason::Shrunken, S(5)));
        assert_eq!(judge(&Case { smaller_for: S(3), ..case(0, 3) }), Verdict::Hold(Reason::Shrunken, S(2)));
        assert_eq!(judge(&Case { smaller_for: S(5), ..case(0, 3) }), Verdict::Apply);
    }

    #[test]
    fn a_store_that_just_came_back_may_not_shrink_anything() {
        assert_eq!(judge(&Case { healthy_for: S(1), ..case(2, 3) }), Verdict::Hold(Reason::Shrunken, S(4)));
        assert_eq!(judge(&Case { healthy_for: S(1), ..case(3, 3) }), Verdict::Apply);
        assert_eq!(
            judge(&Case { healthy_for: S(1), smaller_for: S(50), ..case(0, 3) }),
            Verdict::Hold(Reason::Shrunken, S(4))
        );
    }

    #[test]
    fn a_file_that_nobody_remembers_waits_for_a_healthy_store() {
        let unknown = Case { healthy_for: S(1), smaller_for: S(1), ..case(7, UNKNOWN) };
        assert_eq!(judge(&unknown), Verdict::Hold(Reason::Shrunken, S(4)));
        assert_eq!(judge(&Case { healthy_for: S(5), ..unknown }), Verdict::Apply);
        assert_eq!(
            judge(&Case { items: 0, healthy_for: S(9), smaller_for: S(2), ..unknown }),
            Verdict::Hold(Reason::Shrunken, S(3))
        );
    }

    #[test]
    fn a_wiped_store_empties_nothing_however_long_it_lasts() {
        let wiped = Case { is_other_store: true, smaller_for: S(999), ..case(0, 3) };
        assert_eq!(judge(&wiped), Verdict::Hold(Reason::Wiped, LATER));
        assert_eq!(judge(&Case { items: 1, ..wiped }), Verdict::Apply);
        assert_eq!(judge(&Case { items: 1, healthy_for: S(2), ..wiped }), Verdict::Hold(Reason::Shrunken, S(3)));
    }

    #[test]
    fn the_minimum_holds_always() {
        assert_eq!(
            judge(&Case { min_items: 1, smaller_for: S(999), ..case(0, 3) }),
            Verdict::Hold(Reason::BelowMinimum, LATER)
        );
        assert_eq!(
            judge(&Case { min_items: 2, applied: None, ..case(1, 0) }),
            Verdict::Hold(Reason::BelowMinimum, LATER)
        );
        assert_eq!(judge(&Case { min_items: 2, ..case(2, 3) }), Verdict::Apply);
    }
}
