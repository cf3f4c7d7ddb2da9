//! Compiles the protocol definitions, without a protoc on the machine.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut client = protox::Compiler::new(["proto"])?;
    client
        .include_imports(true)
        .include_source_info(true)
        .open_files(["muster/v1/muster.proto", "muster/agent/v1/agent.proto"])?;
    let peer = protox::compile(["muster/peer/v1/peer.proto"], ["proto"])?;

    // Reflection tells about the client API only.
    std::fs::write(out.join("muster_v1.bin"), client.encode_file_descriptor_set())?;
    for set in [client.file_descriptor_set(), peer] {
        tonic_prost_build::configure().bytes(".").emit_rerun_if_changed(false).compile_fds(set)?;
    }
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
