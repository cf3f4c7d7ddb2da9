//! Compiles the calls of etcd's API that are compared with, without a protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let set = protox::compile(["etcd.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).emit_rerun_if_changed(false).compile_fds(set)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
