//! Whether to stay awake for an answer.
//!
//! Where a server answers in less time than it takes a thread to fall asleep and wake up again, sleeping is most of
//! what a request takes. So after a write the connection looks for answers for a moment, as long as most of them come in
//! that moment. One that is idle, or waits longer, never does.

/// Requests in flight at the most. With more of them it is busy anyway.
const IN_FLIGHT_MAX: usize = 64;
/// What an answer that came in time is worth, up to [`SCORE_MAX`]; one that did not costs [`MISS`].
const SCORE_MAX: u32 = 32;
const MISS: u32 = 8;
/// Writes after which a connection that does not look tries whether it should; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: u32 = 32;
const PAUSE_MAX: u32 = 8192;

#[derive(Debug)]
pub(super) struct Spin {
    score: u32,
    /// Writes until the next try.
    pause: u32,
    next_pause: u32,
}

impl Default for Spin {
    fn default() -> Self {
        Self { score: 0, pause: PAUSE_MIN, next_pause: PAUSE_MIN }
    }
}

impl Spin {
    /// Whether to look for answers behind a write after which so many requests wait.
    pub(super) fn begins(&mut self, waiting: usize) -> bool {
        if waiting == 0 || waiting > IN_FLIGHT_MAX {
            return false;
        }
        if self.score == 0 {
            self.pause = self.pause.saturating_sub(1);
            self.score = u32::from(self.pause == 0);
        }
        self.score > 0
    }

    /// Notes whether an answer came in time.
    pub(super) fn ended(&mut self, in_time: bool) {
        if in_time {
            self.score = (self.score + 1).min(SCORE_MAX);
            if self.score == SCORE_MAX {
                self.next_pause = PAUSE_MIN;
            }
            return;
        }
        self.score = self.score.saturating_sub(MISS);
        if self.score == 0 {
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(PAUSE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_where_answers_come_at_once_and_hardly_ever_where_they_do_not() {
        for (hits_of_100, expected) in
            [(100, 9_900..=10_000), (97, 9_000..=10_000), (50, 0..=500), (0, 1..=12)]
        {
            let mut spin = Spin::default();
            let mut looked = 0;
            for number in 0..10_000 {
                if spin.begins(1) {
                    looked += 1;
                    spin.ended(number * 37 % 100 < hits_of_100);
                }
            }
            assert!(expected.contains(&looked), "{hits_of_100} of 100 in time: looked {looked} times");
        }
        assert!((0..1000).all(|_| !Spin::default().begins(IN_FLIGHT_MAX + 1)), "many in flight");
    }
}
