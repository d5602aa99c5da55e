//! The builder's door.

fn main() -> std::process::ExitCode {
    pgha_image::cli::main()
}
