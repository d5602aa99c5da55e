//! Tests of the two programs and of the project as a whole. One binary: linking is most of what tests cost.

#[cfg(feature = "node")]
mod confd;
#[cfg(feature = "builder")]
mod engines;
mod floors;
mod templates;
