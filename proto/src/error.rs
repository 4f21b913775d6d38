//! The one error of all decoders: where in the input, and what was expected there.

/// Bytes that are not what they claim to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at}: expected {expected}")]
pub struct DecodeError {
    /// Position in the decoded input, in bytes.
    pub at: usize,
    /// What should have stood there, with the bound that was broken where there is one.
    pub expected: String,
}

impl DecodeError {
    /// An error at byte `at` of the input.
    pub fn new(at: usize, expected: impl Into<String>) -> Self {
        Self { at, expected: expected.into() }
    }
}
