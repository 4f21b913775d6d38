//! A wire that can be cut without either end noticing.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Forwards connections. Dropping it ends all of them.
#[derive(Debug)]
pub struct Proxy {
    /// Counts how often the wire was cut: a connection works as long as the number is that of its beginning.
    cuts: watch::Sender<u64>,
    open: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<()>>,
}

impl Proxy {
    /// Forwards what comes to the first address of each pair to the second.
    pub async fn start(ways: &[(SocketAddr, SocketAddr)]) -> io::Result<Self> {
        let (cuts, _) = watch::channel(0);
        let open = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for (from, to) in ways {
            let listener = TcpListener::bind(from).await?;
            tasks.push(tokio::spawn(accept(listener, *to, cuts.clone(), Arc::clone(&open))));
        }
        Ok(Self { cuts, open, tasks })
    }

    /// Every open connection carries nothing from now on, and neither end hears of it. Gives their number.
    pub fn cut(&self) -> usize {
        let open = self.open.swap(0, Ordering::AcqRel);
        self.cuts.send_modify(|cuts| *cuts += 1);
        open
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, cuts: watch::Sender<u64>, open: Arc<AtomicUsize>) {
    // The connections end with this task.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { return };
        while connections.try_join_next().is_some() {}
        let cut = cuts.subscribe();
        connections.spawn(carry(client, to, cut, Arc::clone(&open)));
    }
}

async fn carry(mut client: TcpStream, to: SocketAddr, mut cut: watch::Receiver<u64>, open: Arc<AtomicUsize>) {
    let Ok(mut server) = TcpStream::connect(to).await else { return };
    // A wire has no delay of its own; an error is the end of the connection, which the copy notices.
    let _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
    open.fetch_add(1, Ordering::AcqRel);
    tokio::select! {
        biased;
        _ = cut.changed() => {
            // Both sockets stay open and nobody reads them.
            std::future::pending::<()>().await;
        }
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {
            // A cut may have counted it just now.
            let _ = open.fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| open.checked_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_cut_wire_is_silent_and_a_new_one_works() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = echo.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let (mut input, mut output) = stream.split();
                    let _ = tokio::io::copy(&mut input, &mut output).await;
                });
            }
        });
        let from = SocketAddr::from(([127, 0, 0, 2], to.port()));
        let proxy = Proxy::start(&[(from, to)]).await.unwrap();
        let mut first = TcpStream::connect(from).await.unwrap();
        let mut byte = [0];
        first.write_all(b"a").await.unwrap();
        first.read_exact(&mut byte).await.unwrap();
        assert_eq!(proxy.cut(), 1);
        first.write_all(b"b").await.unwrap();
        let mut second = TcpStream::connect(from).await.unwrap();
        second.write_all(b"c").await.unwrap();
        second.read_exact(&mut byte).await.unwrap();
        assert_eq!(byte, *b"c");
        // The first is neither answered nor closed.
        assert_eq!(first.try_read(&mut byte).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
