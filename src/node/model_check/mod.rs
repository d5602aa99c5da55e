//! Explores what can become of some machines, with the decisions that they take in earnest.
#![allow(dead_code)]

mod claims;
mod decide;
mod etcd;
mod heal;
mod moves;
pub mod scenarios;
mod search;
mod words;
mod world;
