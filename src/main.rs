//! The builder, which runs on the operator's machine.

fn main() -> std::process::ExitCode {
    pgha_image::cli::main()
}
