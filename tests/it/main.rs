//! Tests of the two programs and of the project as a whole. One binary: linking is most of what tests cost.

#[cfg(feature = "builder")]
mod apt;
#[cfg(feature = "builder")]
mod base;
#[cfg(feature = "builder")]
mod engines;
mod floors;
