//! Places where tests of a debug build end the program with SIGKILL, to see what a crash leaves behind.

/// Ends this process if the variable `PGHA_FAULT` names this place; does nothing in a release build.
pub fn point(name: &str) {
    if cfg!(debug_assertions) && std::env::var("PGHA_FAULT").is_ok_and(|wanted| wanted == name) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
