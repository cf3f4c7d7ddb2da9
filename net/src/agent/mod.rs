//! A node's agent on the wire: [`server`] on the node, [`client`] for whoever asks.
//!
//! Two ways lead to an agent: a Unix socket, where the kernel says who is at the other end, and a TCP port, where a certificate
//! does. The same door is behind both.

pub mod client;
pub mod server;
