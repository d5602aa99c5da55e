//! Explores what can become of some machines, with the decisions that they take in earnest.
//!
//! A state of the world ([`world`]) holds the disks of all machines, what runs on them, and what is on its way between
//! them. From each state everything is tried that can happen next ([`moves`]): a message comes or is lost, one write of a
//! step is done, the power goes, a disk is lost or cannot be read, a person gives an order. What a node does next is what
//! [`join::next`](super::join::next), [`promise::answer`](super::promise::answer), [`first::may_start`](super::first::may_start)
//! and the product's other pure decisions say: [`decide`] asks them, [`translate`] puts the question into their words, and
//! nothing else decides. The order of the writes of a step is [`join::writes`](super::join::writes). What etcd and Patroni
//! do by themselves is modelled as their code has it ([`etcd`], [`patroni`]).
//!
//! No clock is in it. Whatever waits for a time in earnest may happen at any moment here, so that clocks may be apart as
//! far as they like. A slow answer is one that is lost and comes later.
//!
//! In every state the rules of [`claims`] hold, and from every state there is a way on once all machines are up ([`heal`]).
//! [`mutations`] shows that a broken decision is found.
//!
//! Run it with `cargo test --lib model_check -- --nocapture` to see how many states were explored.
//! `PGHA_MODEL_STATES=N` explores up to `N` states of each scenario instead of those that fit into a short run.

mod claims;
mod decide;
mod etcd;
mod happen;
mod heal;
mod moves;
mod mutations;
mod patroni;
mod scenarios;
mod search;
mod translate;
mod words;
mod world;
