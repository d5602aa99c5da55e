//! Base layers and the sandbox that they are made in.

mod by_hand;
mod debs;
