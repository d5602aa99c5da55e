//! The guest program's door.

fn main() -> std::process::ExitCode {
    pgha_image::node::cli::main()
}
