//! confd.
pub mod memkv;
pub mod path;
pub mod template;
