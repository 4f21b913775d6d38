//! When a failed attempt is worth another one, where, and after how long.

use std::time::{Duration, Instant};

use gantry_proto::remoting::codes::ResponseCode;

use crate::error::{Error, ErrorKind};

const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What may help after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Nothing will.
    GiveUp,
    /// Another broker may take it; the same one will not.
    Elsewhere,
    /// Trying again later, as long as there is time.
    Later,
}

pub(crate) fn advice(error: &Error) -> Advice {
    match error.kind() {
        ErrorKind::Connect | ErrorKind::ConnectionLost | ErrorKind::Timeout => Advice::Later,
        ErrorKind::Refused(code) => match code {
            ResponseCode::SystemBusy
            | ResponseCode::FlowControl
            | ResponseCode::GoAway
            | ResponseCode::ServiceNotAvailable => Advice::Later,
            ResponseCode::SystemError
            | ResponseCode::TopicNotExist
            | ResponseCode::NoPermission
            | ResponseCode::NoBuyerId
            | ResponseCode::NotInCurrentUnit => Advice::Elsewhere,
            _ => Advice::GiveUp,
        },
        ErrorKind::Invalid
        | ErrorKind::TooLarge
        | ErrorKind::NoRoute
        | ErrorKind::Protocol
        | ErrorKind::Closed
        | ErrorKind::GroupInUse => Advice::GiveUp,
    }
}

/// The attempts of one call.
#[derive(Debug)]
pub(crate) struct Attempts {
    deadline: Instant,
    elsewhere_left: u32,
    pauses: u32,
}

impl Attempts {
    /// Attempts until `limit` has passed, and at most `elsewhere` of them because another broker may help.
    pub(crate) fn new(limit: Duration, elsewhere: u32) -> Self {
        Self { deadline: Instant::now() + limit, elsewhere_left: elsewhere, pauses: 0 }
    }

    /// The pause before the next attempt after `error`; `None` when there shall be none.
    pub(crate) fn next(&mut self, error: &Error) -> Option<Duration> {
        match advice(error) {
            Advice::GiveUp => return None,
            Advice::Elsewhere => {
                self.elsewhere_left = self.elsewhere_left.checked_sub(1)?;
                return Some(Duration::ZERO);
            }
            Advice::Later => {}
        }
        let pause = PAUSE_MIN.saturating_mul(1 << self.pauses.min(8)).min(PAUSE_MAX);
        self.pauses += 1;
        // Many clients that lost the same broker must not come back in step.
        let pause = pause.mul_f64(0.5 + fastrand::f64());
        (Instant::now() + pause < self.deadline).then_some(pause)
    }

    /// What is left of the time, at most `limit`.
    pub(crate) fn time_left(&self, limit: Duration) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).min(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_broker_is_tried_a_few_times_and_later_until_the_time_is_up() {
        let mut attempts = Attempts::new(Duration::from_secs(3600), 2);
        let permission = Error::refused(16, None);
        assert_eq!(attempts.next(&permission), Some(Duration::ZERO));
        assert_eq!(attempts.next(&permission), Some(Duration::ZERO));
        assert_eq!(attempts.next(&permission), None);
        for _ in 0..20 {
            let pause = attempts.next(&Error::refused(2, None)).unwrap();
            assert!(pause <= PAUSE_MAX * 3 / 2);
        }
        assert_eq!(attempts.next(&Error::refused(13, None)), None);
        assert_eq!(Attempts::new(Duration::ZERO, 2).next(&Error::refused(2, None)), None);
    }
}
