//! Bytes between replicas and to clients: gRPC over HTTP/2, and HTTP/1.1 beside it.
//!
//! Read in this order: [`proto`] (what is on the wire), [`convert`] (to core's types and back), [`client`] (the Rust client),
//! [`server`] (a replica's two listeners), [`peer`] (replica to replica), [`tls`] (who is at the other end), [`agent`] (a node's
//! agent).
//!
//! Nothing here decides: who may do what, when to retry and where to turn are core's answers. Whatever comes from the
//! network is checked while it is converted; nothing that arrives can make this crate panic.

pub mod agent;
pub mod client;
pub mod convert;
pub mod peer;
pub mod server;
pub mod tls;

/// The protocol definitions, compiled.
pub mod proto {
    /// The client API.
    #[allow(clippy::all, clippy::pedantic, missing_docs, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("muster.v1");
        /// The descriptors of the client API, for reflection.
        pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/muster_v1.bin"));
    }
    /// The API of a node's agent.
    #[allow(clippy::all, clippy::pedantic, missing_docs, reason = "generated")]
    pub mod agent {
        /// The only version there is.
        pub mod v1 {
            tonic::include_proto!("muster.agent.v1");
        }
    }
    /// Replica to replica.
    #[allow(clippy::all, clippy::pedantic, missing_docs, reason = "generated")]
    pub mod peer {
        tonic::include_proto!("muster.peer.v1");
    }
}
