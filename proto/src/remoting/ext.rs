//! The `extFields` of a command: an ordered list of names and values, all text.

use std::borrow::Cow;

use crate::json::write_string;

use super::frame::Serialize;

/// Most fields one command may carry; real ones carry fewer than 30.
pub const EXT_FIELDS_MAX: usize = 256;

/// The fields of a decoded command, in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtFields<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

/// Equality of short names. Almost every pair differs in its length or first byte: no call for those.
#[inline]
fn same(left: &str, right: &str) -> bool {
    left.len() == right.len() && left.as_bytes().first() == right.as_bytes().first() && left == right
}

impl<'a> ExtFields<'a> {
    /// No fields.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// No fields, with room for `fields`.
    pub fn with_capacity(fields: usize) -> Self {
        Self(Vec::with_capacity(fields))
    }

    /// The value of `name`. When a peer sent a name twice the first counts, here and everywhere else.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| same(key, name)).map(|(_, value)| value.as_ref())
    }

    /// Adds a field at the end.
    #[inline]
    pub fn push(&mut self, name: impl Into<Cow<'a, str>>, value: impl Into<Cow<'a, str>>) {
        self.0.push((name.into(), value.into()));
    }

    /// Sets a field: replaces its value, or adds it.
    pub fn set(&mut self, name: impl Into<Cow<'a, str>>, value: impl Into<Cow<'a, str>>) {
        let name = name.into();
        match self.0.iter_mut().find(|(key, _)| *key == name) {
            Some((_, old)) => *old = value.into(),
            None => self.push(name, value),
        }
    }

    /// All fields in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), value.as_ref()))
    }

    /// How many fields.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same fields, free of the buffer they were read from.
    pub fn into_owned(self) -> ExtFields<'static> {
        let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        ExtFields(self.0.into_iter().map(|(name, value)| (own(name), own(value))).collect())
    }

    /// Forgets all fields.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Empties the list and hands its memory on: give it to
    /// [`Command::decode_reusing`](super::header::Command::decode_reusing) for the next command.
    pub fn recycle(mut self) -> ExtFields<'static> {
        self.0.clear();
        // Collecting from an emptied vector of the same layout keeps its allocation.
        ExtFields(self.0.into_iter().map(|_| (Cow::Borrowed(""), Cow::Borrowed(""))).collect())
    }
}

/// Anything that can write its ext fields into a command. Tuples write one after the other; `()` writes
/// none; a closure `|out: &mut ExtWriter<'_>| …` writes what it likes.
pub trait ExtWrite {
    /// Writes every field that has a value.
    fn write(&self, out: &mut ExtWriter<'_>);
}

/// Writes fields in the form of the frame, straight into the output.
#[derive(Debug)]
pub struct ExtWriter<'o> {
    out: &'o mut Vec<u8>,
    form: Serialize,
    first: bool,
    fits: bool,
}

impl<'o> ExtWriter<'o> {
    pub(super) const fn new(out: &'o mut Vec<u8>, form: Serialize) -> Self {
        Self { out, form, first: true, fits: true }
    }

    /// Whether every length fitted its binary length field.
    pub(super) const fn fits(&self) -> bool {
        self.fits
    }

    /// One text field.
    pub fn text(&mut self, name: &str, value: &str) {
        match self.form {
            Serialize::Json => {
                self.json_name(name);
                write_string(self.out, value);
            }
            Serialize::RocketMq => self.binary(name, value.as_bytes()),
        }
    }

    /// One whole number.
    pub fn number(&mut self, name: &str, value: i64) {
        let mut digits = [0; 20];
        self.plain(name, decimal(value, &mut digits));
    }

    /// One `true` or `false`.
    pub fn flag(&mut self, name: &str, value: bool) {
        self.plain(name, if value { b"true" } else { b"false" });
    }

    /// A value that needs no escapes.
    fn plain(&mut self, name: &str, value: &[u8]) {
        match self.form {
            Serialize::Json => {
                self.json_name(name);
                self.out.push(b'"');
                self.out.extend_from_slice(value);
                self.out.push(b'"');
            }
            Serialize::RocketMq => self.binary(name, value),
        }
    }

    fn json_name(&mut self, name: &str) {
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
        write_string(self.out, name);
        self.out.push(b':');
    }

    fn binary(&mut self, name: &str, value: &[u8]) {
        let (Ok(name_len), Ok(value_len)) = (i16::try_from(name.len()), i32::try_from(value.len())) else {
            self.fits = false;
            return;
        };
        self.out.reserve(6 + name.len() + value.len());
        self.out.extend_from_slice(&name_len.to_be_bytes());
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(&value_len.to_be_bytes());
        self.out.extend_from_slice(value);
    }
}

/// Writes `value` in decimal into the end of `digits` and returns that end.
pub(super) fn decimal(value: i64, digits: &mut [u8; 20]) -> &[u8] {
    let mut left = value.unsigned_abs();
    let mut at = digits.len();
    loop {
        at -= 1;
        // A remainder of ten fits a byte; 19 digits and a sign fit the array.
        digits[at] = b'0' + u8::try_from(left % 10).unwrap_or_default();
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if value < 0 {
        at -= 1;
        digits[at] = b'-';
    }
    &digits[at..]
}

impl ExtWrite for () {
    fn write(&self, _: &mut ExtWriter<'_>) {}
}

impl<A: ExtWrite, B: ExtWrite> ExtWrite for (A, B) {
    fn write(&self, out: &mut ExtWriter<'_>) {
        self.0.write(out);
        self.1.write(out);
    }
}

impl<A: ExtWrite> ExtWrite for Option<A> {
    fn write(&self, out: &mut ExtWriter<'_>) {
        if let Some(fields) = self {
            fields.write(out);
        }
    }
}

impl<F: Fn(&mut ExtWriter<'_>)> ExtWrite for F {
    fn write(&self, out: &mut ExtWriter<'_>) {
        self(out);
    }
}

impl ExtWrite for ExtFields<'_> {
    fn write(&self, out: &mut ExtWriter<'_>) {
        for (name, value) in self.iter() {
            out.text(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_of_all_lengths() {
        for value in [0, 7, -1, 10, 1_700_000_000_123, i64::MAX, i64::MIN] {
            assert_eq!(decimal(value, &mut [0; 20]), value.to_string().as_bytes());
        }
    }

    #[test]
    fn the_first_of_two_equal_names_counts() {
        let mut fields = ExtFields::new();
        fields.push("topic", "a");
        fields.push("topic", "b");
        assert_eq!(fields.get("topic"), Some("a"));
        fields.set("topic", "c");
        assert_eq!((fields.get("topic"), fields.len()), (Some("c"), 2));
        let storage = fields.recycle();
        assert!(storage.is_empty() && storage.0.capacity() >= 2);
    }
}
