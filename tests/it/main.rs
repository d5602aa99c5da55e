//! Tests of the two programs and of the project as a whole. One binary: linking is most of what tests cost.

mod floors;
mod templates;
