//! The least a three-replica commit can cost here: blocking sockets and syncs, and nothing else.
//!
//! ```text
//! caller ── value ──► leader ── value ──► two followers
//!                     write, sync         write, sync, answer
//!        ◄── answer ─ own sync and the first follower's answer
//! ```
//! Files are zero-filled beforehand, as the log's segments are.

use crate::load::{histogram, micros};
use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How much of a file is zero-filled; writing begins anew at its start after that.
const FILE_BYTES: u64 = 16 << 20;

struct Disk {
    file: File,
    at: u64,
}

impl Disk {
    fn make(path: &Path) -> Result<Self> {
        let file = File::create(path)?;
        let zeros = vec![0; 1 << 20];
        for step in 0..FILE_BYTES >> 20 {
            file.write_all_at(&zeros, step << 20)?;
        }
        file.sync_all()?;
        Ok(Self { file, at: 0 })
    }

    /// One value in whole sectors, durably.
    fn keep(&mut self, value: &[u8]) -> std::io::Result<()> {
        let mut sectors = value.to_vec();
        sectors.resize(value.len().next_multiple_of(512), 1);
        if self.at + sectors.len() as u64 > FILE_BYTES {
            self.at = 0;
        }
        self.file.write_all_at(&sectors, self.at)?;
        self.at += sectors.len() as u64;
        self.file.sync_data()
    }
}

fn pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let here = TcpStream::connect(listener.local_addr()?)?;
    let (there, _) = listener.accept()?;
    here.set_nodelay(true)?;
    there.set_nodelay(true)?;
    Ok((here, there))
}

/// Keeps and answers until its leader goes away.
fn follow(mut leader: TcpStream, mut disk: Disk, bytes: usize) {
    let mut value = vec![0; bytes];
    while leader.read_exact(&mut value).is_ok() {
        if disk.keep(&value).is_err() || leader.write_all(&[1]).is_err() {
            return;
        }
    }
}

/// Sends, keeps and answers until its caller goes away.
fn lead(mut caller: TcpStream, mut followers: Vec<TcpStream>, mut disk: Disk, bytes: usize) -> Result<()> {
    let (answered, answers) = mpsc::channel();
    for follower in &followers {
        let (mut follower, answered) = (follower.try_clone()?, answered.clone());
        std::thread::spawn(move || {
            let mut turn = 0_u64;
            while follower.read_exact(&mut [0]).is_ok() && answered.send(turn).is_ok() {
                turn += 1;
            }
        });
    }
    let mut value = vec![0; bytes];
    let mut turn = 0;
    while caller.read_exact(&mut value).is_ok() {
        for follower in &mut followers {
            follower.write_all(&value)?;
        }
        disk.keep(&value)?;
        // The slower follower's answers to earlier values may still come.
        while answers.recv()? != turn {}
        turn += 1;
        caller.write_all(&[1])?;
    }
    Ok(())
}

/// One caller's latencies, in microseconds.
pub(crate) fn run(dir: &Path, bytes: usize, seconds: u64) -> Result<Histogram<u64>> {
    let (mut caller, client) = pair()?;
    let mut followers = Vec::new();
    for place in 1..3 {
        let (here, there) = pair()?;
        let disk = Disk::make(&dir.join(format!("floor-{place}"))).context("making a file for the floor")?;
        std::thread::spawn(move || follow(there, disk, bytes));
        followers.push(here);
    }
    let disk = Disk::make(&dir.join("floor-0"))?;
    let leader = std::thread::spawn(move || lead(client, followers, disk, bytes));
    let value = vec![7; bytes];
    let mut latency = histogram();
    let begin = Instant::now() + Duration::from_millis(100 * seconds);
    let end = begin + Duration::from_secs(seconds);
    loop {
        let start = Instant::now();
        if start >= end {
            break;
        }
        caller.write_all(&value)?;
        caller.read_exact(&mut [0])?;
        if start >= begin {
            latency.saturating_record(micros(start.elapsed()));
        }
    }
    drop(caller);
    leader.join().map_err(|_| anyhow::anyhow!("the floor's leader panicked"))??;
    Ok(latency)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!run(dir.path(), 256, 1).unwrap().is_empty());
    }
}
