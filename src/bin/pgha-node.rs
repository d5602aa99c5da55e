//! The guest program, which runs in every image.

fn main() -> std::process::ExitCode {
    pgha_image::node::cli::main()
}
