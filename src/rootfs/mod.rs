//! The guest's `/` as a value.
//!
//! A [`Tree`] maps every guest path to an [`Entry`]: kind, mode, numeric owners, time, extended attributes. A file's
//! bytes stay where they are and are named by a [`Content`]: its own SHA-256, and where in the store they lie. A
//! [`Layer`] is the change that one step of a build makes to a tree; trees are the sum of layers.
//!
//! Both have one canonical form, in which everything is sorted and nothing depends on the machine: the tar stream of
//! [`tar`], which is what OCI layers hold and where contents lie, and the text of [`Tree::dump`], one line per path,
//! which is what tests compare.

pub mod tar;
mod tree;

pub use tree::{Change, Clash, Content, Differing, Entry, Kind, Layer, Tree};
