use crate::exit::Failure;
use muster_net::client::Boot;
pub(crate) struct Assembled { pub(crate) delta: serde_json::Value, pub(crate) settings: serde_json::Value, pub(crate) delta_summary: String, pub(crate) table: String }
pub(crate) fn assemble(_boot: &Boot) -> Result<Assembled, Failure> { todo!() }
