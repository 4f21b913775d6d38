//! What the machine could do at best: the limits that no broker's figures can pass.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use gantry_benches::failure::Failure;
use rustix::fs::{FallocateFlags, fallocate};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::options::{Options, Set};
use crate::stats;

/// Bytes that go to and fro over the loopback: a short request.
const MESSAGE: usize = 64;
const PAGE: usize = 4096;
/// Bytes of one sequential write.
const BLOCK: usize = 1 << 20;
/// Bytes of the buffers that are copied and checked: more than caches hold.
const BUFFER: usize = 64 << 20;

/// One limit of the machine.
#[derive(Clone, Debug, Serialize)]
pub struct Limit {
    /// What it is.
    pub name: &'static str,
    /// `µs`, `1/s`, `MB/s`, `GB/s`.
    pub unit: &'static str,
    /// Which figures it bounds.
    pub bounds: &'static str,
    /// Each time that it was measured: before everything else and after it.
    pub values: Vec<f64>,
}

impl Limit {
    /// The median.
    pub fn value(&self) -> f64 {
        stats::median(&self.values)
    }
}

/// Name of the limit of synchronous writes.
pub const FDATASYNC: &str = "write of 4 KiB and fdatasync";
/// Name of the limit of requests one at a time.
pub const LOOPBACK: &str = "loopback round trip, blocking";

/// Measures all of them and adds them to `limits`.
pub fn measure(options: &Options, limits: &mut Vec<Limit>) -> Result<(), Failure> {
    let quick = options.set == Set::Quick;
    let time = Duration::from_millis(if quick { 200 } else { 1500 });
    let bytes = if quick { 64 << 20 } else { 1 << 30 };
    let dir = tempfile::Builder::new().prefix("gantry-bench-").tempdir_in(&options.dir);
    let dir = dir.map_err(Failure::system("making a directory, see --dir"))?;
    let disk = Failure::system("writing to measure the disk");
    let net = Failure::system("measuring the loopback");
    let (blocking, epoll) =
        loopback(time).and_then(|blocking| Ok((blocking, loopback_epoll(time)?))).map_err(net)?;
    let (written, synced, syncs) = sequential(dir.path(), bytes)
        .and_then(|(written, synced)| Ok((written, synced, fdatasyncs(dir.path(), time * 2)?)))
        .map_err(disk)?;
    let mut add = |name, unit, bounds, value| {
        match limits.iter_mut().find(|limit| limit.name == name) {
            Some(limit) => limit.values.push(value),
            None => limits.push(Limit { name, unit, bounds, values: vec![value] }),
        }
        eprintln!("{name}: {value:.1} {unit}");
    };
    add(LOOPBACK, "µs", "latency, memory, 1 in flight", blocking);
    add("loopback round trip, epoll", "µs", "latency, memory, 1 in flight", epoll);
    add(FDATASYNC, "1/s", "throughput, disk, 1 in flight", syncs);
    add("sequential write, page cache", "MB/s", "throughput, memory, large bodies", written);
    add("sequential write with one fdatasync", "MB/s", "throughput, disk, large bodies", synced);
    add("copy in memory", "GB/s", "throughput, batches and drain", copies(time));
    add("CRC-32", "GB/s", "throughput, batches", checksums(time));
    Ok(())
}

/// Calls `work` until `time` is over; how long one call took on average.
fn each(time: Duration, mut work: impl FnMut() -> io::Result<()>) -> io::Result<Duration> {
    let since = Instant::now();
    let mut calls = 0;
    while since.elapsed() < time {
        work()?;
        calls += 1;
    }
    Ok(since.elapsed() / calls)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
fn per_second(amount: usize, time: Duration) -> f64 {
    amount as f64 / time.as_secs_f64()
}

/// Microseconds of a round trip between two threads that block.
fn loopback(time: Duration) -> io::Result<f64> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut message = [0; MESSAGE];
            // Ends with the other side.
            while far.read_exact(&mut message).and_then(|()| far.write_all(&message)).is_ok() {}
        });
        let mut message = [1; MESSAGE];
        let took = each(time, || near.write_all(&message).and_then(|()| near.read_exact(&mut message)));
        drop(near);
        took.map(micros)
    })
}

/// Microseconds of a round trip between two threads that wait for events, as brokers and clients do.
fn loopback_epoll(time: Duration) -> io::Result<f64> {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (here, there) = (runtime()?, runtime()?);
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
    }
    thread::scope(|scope| {
        scope.spawn(move || {
            there.block_on(async {
                let mut far = tokio::net::TcpStream::from_std(far)?;
                let mut message = [0; MESSAGE];
                while far.read_exact(&mut message).await.is_ok() {
                    far.write_all(&message).await?;
                }
                io::Result::Ok(())
            })
        });
        here.block_on(async {
            let mut near = tokio::net::TcpStream::from_std(near)?;
            let mut message = [1; MESSAGE];
            let since = Instant::now();
            let mut trips = 0;
            while since.elapsed() < time {
                near.write_all(&message).await?;
                near.read_exact(&mut message).await?;
                trips += 1;
            }
            Ok(micros(since.elapsed() / trips))
        })
    })
}

/// A file whose blocks are on the disk already, as logs are.
fn allocated(path: &Path, bytes: usize) -> io::Result<File> {
    let file = File::create(path)?;
    fallocate(&file, FallocateFlags::empty(), 0, bytes as u64)?;
    file.sync_all()?;
    Ok(file)
}

/// MB/s of writes to the page cache, and with an fdatasync at the end.
fn sequential(dir: &Path, bytes: usize) -> io::Result<(f64, f64)> {
    let file = allocated(&dir.join("sequential"), bytes)?;
    let block = vec![0x5A; BLOCK];
    let since = Instant::now();
    for number in 0..bytes / BLOCK {
        file.write_all_at(&block, (number * BLOCK) as u64)?;
    }
    let written = since.elapsed();
    file.sync_data()?;
    let synced = since.elapsed();
    std::fs::remove_file(dir.join("sequential"))?;
    Ok((per_second(bytes, written) / 1e6, per_second(bytes, synced) / 1e6))
}

/// Writes of a page one after the other, each with fdatasync, per second. The file was written before: what was
/// only allocated costs the file system a change of its own for every page.
fn fdatasyncs(dir: &Path, time: Duration) -> io::Result<f64> {
    let bytes = 64 << 20;
    let file = allocated(&dir.join("synchronous"), bytes)?;
    file.write_all_at(&vec![0; bytes], 0)?;
    file.sync_all()?;
    let page = [0xA5; PAGE];
    let mut at = 0;
    let took = each(time, || {
        file.write_all_at(&page, at)?;
        at = (at + PAGE as u64) % bytes as u64;
        file.sync_data()
    })?;
    std::fs::remove_file(dir.join("synchronous"))?;
    Ok(per_second(1, took))
}

/// GB/s that are copied.
fn copies(time: Duration) -> f64 {
    let (from, mut to) = (vec![1_u8; BUFFER], vec![0_u8; BUFFER]);
    let took = each(time / 3, || {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
        Ok(())
    });
    took.map_or(f64::NAN, |took| per_second(BUFFER, took) / 1e9)
}

/// GB/s whose checksum is computed.
fn checksums(time: Duration) -> f64 {
    let bytes = vec![1_u8; BUFFER];
    let took = each(time / 3, || {
        black_box(crc32fast::hash(black_box(&bytes)));
        Ok(())
    });
    took.map_or(f64::NAN, |took| per_second(BUFFER, took) / 1e9)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn every_limit_is_measured_again_each_time() {
        let mut limits = Vec::new();
        let options = Options::parse_from(["compare", "--set", "quick"]);
        measure(&options, &mut limits).unwrap();
        measure(&options, &mut limits).unwrap();
        assert_eq!(limits.len(), 7);
        assert!(limits.iter().all(|limit| limit.values.len() == 2 && limit.value() > 0.0), "{limits:?}");
    }
}
