//! Messages that wait for a link: bounded by bytes, dropped when full. Raft repeats what matters.

use super::frame::{LENGTH_BYTES, take_frame};
use crate::proto::peer::Frame;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Bytes>,
    bytes: usize,
}

pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    bytes_max: usize,
    arrived: Notify,
    dropped: AtomicU64,
}

impl Queue {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { waiting: Mutex::default(), bytes_max, arrived: Notify::new(), dropped: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message, or drops it if the queue is full. One message always fits an empty queue.
    pub(super) fn put(&self, message: Bytes) {
        let mut waiting = self.lock();
        if !waiting.messages.is_empty() && waiting.bytes + message.len() > self.bytes_max {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.bytes += message.len();
        waiting.messages.push_back(message);
        drop(waiting);
        self.arrived.notify_one();
    }

    /// Waits for messages; gives as many as fit one frame.
    pub(super) async fn frame(&self) -> Frame {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut waiting = self.lock();
                let before = waiting.messages.len();
                if let Some(frame) = take_frame(&mut waiting.messages) {
                    let lengths = LENGTH_BYTES * (before - waiting.messages.len());
                    waiting.bytes -= frame.payload.len() - lengths;
                    return frame;
                }
            }
            arrived.await;
        }
    }

    /// Drops everything: what waited for a link that could not be made is old news once there is one.
    pub(super) fn clear(&self) {
        let mut waiting = self.lock();
        self.dropped.fetch_add(waiting.messages.len() as u64, Ordering::Relaxed);
        *waiting = Waiting::default();
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}
