//! The connections to the replicas, and the choice among them; shared by all clones of a client.

use super::pipe::Pipe;
use super::types::{ClientError, Options};
use crate::proto::v1::muster_client::MusterClient;
use crate::tls::{Expect, Tls, dial, root_cause};
use muster_core::client::Targets;
use muster_core::ids::Time;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How to reach a replica.
pub(super) fn endpoint(address: &str, options: &Options) -> Result<Endpoint, ClientError> {
    let wrong = |problem: &dyn std::fmt::Display| ClientError::Invalid {
        problem: format!("{address:?} is not the address of a replica ({problem}): expected HOST:PORT"),
    };
    if !address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
        return Err(wrong(&"no port"));
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| wrong(&root_cause(&error)))?;
    Ok(endpoint
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(2))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20))
}

pub(super) struct Connections {
    pub(super) options: Options,
    started: Instant,
    targets: Mutex<Targets>,
    /// With how often the certificate had been taken when they were made: one that ends is refused on connections that are up,
    /// so a renewed one makes new ones.
    channels: Mutex<BTreeMap<Arc<str>, (u64, Channel)>>,
    pipes: Mutex<BTreeMap<Arc<str>, (u64, Pipe)>>,
}

impl Connections {
    pub(super) fn new(addresses: &[String], options: Options, seed: u64) -> Result<Self, ClientError> {
        for address in addresses {
            endpoint(address, &options)?;
        }
        if addresses.is_empty() {
            return Err(ClientError::Invalid {
                problem: "there is no address: give at least one HOST:PORT".to_owned(),
            });
        }
        let targets = Targets::new(addresses.iter().map(|address| Arc::from(address.as_str())), seed);
        Ok(Self {
            options,
            started: Instant::now(),
            targets: Mutex::new(targets),
            channels: Mutex::default(),
            pipes: Mutex::default(),
        })
    }

    pub(super) fn now(&self) -> Time {
        Time(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn at(&self, time: Time) -> tokio::time::Instant {
        (self.started + Duration::from_nanos(time.0)).into()
    }

    pub(super) fn targets(&self) -> MutexGuard<'_, Targets> {
        lock(&self.targets)
    }

    /// Whom to ask. There always is somebody: a client is made with at least one address, and none is ever forgotten.
    pub(super) fn current(&self) -> Arc<str> {
        self.targets().current().cloned().unwrap_or_else(|| Arc::from("nobody:0"))
    }

    fn times_loaded(&self) -> u64 {
        self.options.tls.as_ref().map_or(0, Tls::times_loaded)
    }

    /// The stub for questions to a replica. Connects when it is first used.
    pub(super) fn stub(&self, address: &str) -> Result<MusterClient<Channel>, ClientError> {
        let mut channels = lock(&self.channels);
        let time = self.times_loaded();
        let channel = if let Some((_, channel)) = channels.get(address).filter(|(made, _)| *made == time) {
            channel.clone()
        } else {
            let endpoint = endpoint(address, &self.options)?;
            let channel = dial::connect_lazy(&endpoint, self.options.tls.as_ref(), &Expect::Replica);
            channels.insert(Arc::from(address), (time, channel.clone()));
            channel
        };
        Ok(MusterClient::new(channel).max_decoding_message_size(usize::MAX))
    }

    /// The pipe for writes to a replica.
    pub(super) fn pipe(&self, address: &Arc<str>) -> Pipe {
        let mut pipes = lock(&self.pipes);
        let time = self.times_loaded();
        if let Some((made, pipe)) = pipes.get(address)
            && *made == time
            && !pipe.is_broken()
        {
            return pipe.clone();
        }
        let pipe = Pipe::open(address, &self.options);
        pipes.insert(address.clone(), (time, pipe.clone()));
        pipe
    }
}
