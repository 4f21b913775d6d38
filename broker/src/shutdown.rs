//! Stopping in order: every task is spawned here, so that each can be told to stop and waited for.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A group of tasks that stop together. Clones speak for the same group.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tracker: TaskTracker,
}

/// Whether all tasks ended in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Drained {
    /// Every task has ended.
    Complete,
    /// This many tasks were still running at the deadline.
    Running(usize),
}

impl Shutdown {
    /// A group without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Is cancelled when the group is told to stop.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// A group of its own that is told to stop with this one, or alone before it. It is drained on
    /// its own: draining the parent does not wait for the child's tasks.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token(), tracker: TaskTracker::new() }
    }

    /// Runs `future` as a task of this group; `name` appears in the log when it panics.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_on(&Handle::current(), name, future)
    }

    /// The same on another runtime than this one.
    pub fn spawn_on<F>(&self, runtime: &Handle, name: &'static str, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = async move {
            let _alarm = PanicAlarm { name };
            future.await;
        };
        self.tracker.spawn_on(task, runtime)
    }

    /// Tells the group and its children to stop; returns at once.
    pub fn stop(&self) {
        self.token.cancel();
    }

    /// Whether the group was told to stop.
    pub fn is_stopping(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Tells the group to stop and waits until its tasks have ended, at most `deadline`.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.stop();
        self.tracker.close();
        match tokio::time::timeout(deadline, self.tracker.wait()).await {
            Ok(()) => Drained::Complete,
            Err(_) => Drained::Running(self.tracker.len()),
        }
    }
}

/// Logs when it is dropped by a panic: nobody awaits the tasks' handles.
struct PanicAlarm {
    name: &'static str,
}

impl Drop for PanicAlarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.name, "task panicked; its part of the broker has stopped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn draining_stops_the_tasks_and_waits_for_them() {
        let shutdown = Shutdown::new();
        let token = shutdown.token().clone();
        shutdown.spawn("waits", async move { token.cancelled().await });
        assert_eq!(shutdown.drain(Duration::from_secs(60)).await, Drained::Complete);
        assert!(shutdown.is_stopping());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_listen_is_counted() {
        let shutdown = Shutdown::new();
        shutdown.spawn("deaf", std::future::pending());
        assert_eq!(shutdown.drain(Duration::from_secs(1)).await, Drained::Running(1));
    }

    #[tokio::test]
    async fn a_child_stops_alone_or_with_its_parent() {
        let parent = Shutdown::new();
        let (alone, together) = (parent.child(), parent.child());
        alone.stop();
        assert!(!parent.is_stopping());
        parent.stop();
        assert!(alone.is_stopping() && together.is_stopping());
    }

    #[tokio::test]
    async fn a_panic_ends_its_task_only() {
        let shutdown = Shutdown::new();
        let ended = shutdown.spawn("panics", async { panic!("on purpose") });
        assert!(ended.await.is_err_and(|error| error.is_panic()));
        shutdown.spawn("lives", async {});
        assert_eq!(shutdown.drain(Duration::from_secs(60)).await, Drained::Complete);
    }
}
