//! What the lab does to a broker.

use std::fmt;
use std::str::FromStr;

/// A way in which the world is unkind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// SIGKILL at any moment, also while it starts.
    Kill,
    /// SIGTERM and SIGKILL in quick succession, also while it starts.
    Restarts,
    /// SIGSTOP for longer than clients wait, then SIGCONT.
    Freeze,
    /// SIGKILL before, in or after a certain write, sync, rename, removal …
    Point,
    /// The power fails: of what was not synced, the disk keeps what it likes.
    Power,
    /// No room on the disk.
    Full,
    /// Writes that fail with EIO.
    EioWrite,
    /// Syncs that fail with EIO.
    EioSync,
    /// A disk that takes its time.
    SlowDisk,
    /// A wall clock that jumps back and forth.
    Clock,
    /// Connections that vanish without a word, peers that never finish a frame.
    HalfOpen,
    /// Consumers that ask for a lot and do not read it.
    SlowReader,
    /// Clients by the hundred that connect, say who they are, and leave or break off.
    Reconnect,
}

/// How a fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// It strikes, and the broker is healed or restarted after each stroke.
    Stroke,
    /// It goes on beside the load, and beside strokes.
    Weather,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 13] = [
        Self::Kill,
        Self::Restarts,
        Self::Freeze,
        Self::Point,
        Self::Power,
        Self::Full,
        Self::EioWrite,
        Self::EioSync,
        Self::SlowDisk,
        Self::Clock,
        Self::HalfOpen,
        Self::SlowReader,
        Self::Reconnect,
    ];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Restarts => "restarts",
            Self::Freeze => "freeze",
            Self::Point => "point",
            Self::Power => "power",
            Self::Full => "full",
            Self::EioWrite => "eio-write",
            Self::EioSync => "eio-sync",
            Self::SlowDisk => "slow-disk",
            Self::Clock => "clock",
            Self::HalfOpen => "half-open",
            Self::SlowReader => "slow-reader",
            Self::Reconnect => "reconnect",
        }
    }

    /// How it comes.
    pub const fn nature(self) -> Nature {
        match self {
            Self::Kill
            | Self::Restarts
            | Self::Freeze
            | Self::Point
            | Self::Power
            | Self::Full
            | Self::EioWrite
            | Self::EioSync => Nature::Stroke,
            Self::SlowDisk | Self::Clock | Self::HalfOpen | Self::SlowReader | Self::Reconnect => {
                Nature::Weather
            }
        }
    }

    /// Whether the broker must say loudly that something is wrong; otherwise it must not.
    pub const fn is_reported(self) -> bool {
        matches!(self, Self::Full | Self::EioWrite | Self::EioSync)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|fault| fault.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|fault| fault.name()).collect();
            format!("{text:?} is no fault: choose from {}", names.join(", "))
        })
    }
}
