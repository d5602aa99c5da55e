//! Tests of the two programs and of the project as a whole. One binary: linking is most of what tests cost.
#![allow(clippy::print_stdout, reason = "tests show figures")]

#[cfg(feature = "node")]
mod agent;
#[cfg(feature = "builder")]
mod apt;
#[cfg(feature = "builder")]
mod base;
#[cfg(all(feature = "builder", feature = "node"))]
mod build;
#[cfg(feature = "node")]
mod confd;
#[cfg(feature = "builder")]
mod container;
#[cfg(all(feature = "builder", feature = "node"))]
mod disk;
#[cfg(feature = "builder")]
mod engines;
#[cfg(feature = "node")]
mod forming;
#[cfg(feature = "node")]
mod gate;
mod layers;
#[cfg(feature = "builder")]
mod machine;
#[cfg(feature = "node")]
mod recovering;
#[cfg(feature = "builder")]
mod stability;
mod style;
#[cfg(feature = "builder")]
mod support;
mod templates;
#[path = "../../src/testing.rs"]
#[allow(dead_code, reason = "shared with the library's own tests")]
mod testing;
