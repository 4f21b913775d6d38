//! Ports that nobody listens on.

use std::io;
use std::net::TcpListener;

/// Ports for one broker and its name service, on the loopback address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Name service.
    pub name: u16,
    /// Broker. The port two below (VIP channel) and the next one (Apache's replication) are free too.
    pub broker: u16,
}

/// Ports outside of the range that the system hands out for port 0, so that no connection of a test takes
/// them between this look and their use.
pub fn free() -> io::Result<Ports> {
    let listen = |port: u16| TcpListener::bind(("127.0.0.1", port));
    for _ in 0..100 {
        let name = fastrand::u16(20_000..30_000);
        let ports = Ports { name, broker: name + 4 };
        let all: io::Result<Vec<_>> = [name, name + 2, name + 4, name + 5].into_iter().map(listen).collect();
        if all.is_ok() {
            return Ok(ports);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no free ports between 20000 and 30000"))
}
