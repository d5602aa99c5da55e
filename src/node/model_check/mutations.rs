//! Mistakes that are planted one at a time, so that the checker can show that it would find them.
//!
//! The decisions themselves are the product's. What is changed is what a decision is given, or what becomes of its answer:
//! each mistake does what a wrong line in one of the product's functions would do.

/// One mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mutation {
    /// A founder takes a member that does not answer for one that has promised.
    SilentIsFresh,
    /// A promise is told before it is on the disk.
    ToldUnwritten,
    /// Who has promised promises something else to the next who asks.
    PromisesTwice,
    /// An error when the disk is looked at counts as nothing being there.
    UnreadIsAbsent,
    /// A member starts as it was to start before, whether the disk is still the same or not.
    MarkUnlooked,
    /// A member's data are set aside without a word that it has voted.
    SeenUnwritten,
    /// A database that is damaged is taken for half of a copy.
    DamagedIsHalf,
    /// The key `initialize` without a value is taken for a cluster that has no database yet, whatever the other key says.
    EmptiedIsUnbegun,
    /// A Patroni that was let in is never stopped again.
    WaitsInVain,
    /// A promise is kept whose founder has lost its disk.
    NeverReleases,
}
