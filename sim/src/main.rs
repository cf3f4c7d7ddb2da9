//! `muster-sim`: plays stories of faults against whole clusters.

use std::process::ExitCode;

fn main() -> ExitCode {
    muster_sim::tool::main()
}
