//! Typed header fields of requests and replies, one file per family.
//!
//! Each header is a table of `field: type = "wireName"`. Reading is lenient, as RocketMQ's own is: a
//! missing field is its type's default, or `None` for an `Option`; fields nobody asked for are ignored.
//! A field that is there but cannot be read is an error. Writing leaves out `None` and nothing else.
//!
//! Where a missing number must not be taken for 0, the field is an `Option`.

use super::ext::{ExtFields, ExtWriter};

pub mod callback;
pub mod drain;
pub mod group;
pub mod member;
pub mod nameserver;
pub mod offset;
pub mod pop;
pub mod pull;
pub mod query;
pub mod send;
pub mod topic;
pub mod transaction;

/// A field that cannot be read as its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("header field {field} is {value:?}, expected {expected}: correct the request")]
pub struct HeaderError {
    /// Wire name of the field.
    pub field: &'static str,
    /// What it held, cut to 64 characters.
    pub value: String,
    /// What it should have held.
    pub expected: &'static str,
}

/// Header fields that can be read from a command. `'a` is the life of the [`ExtFields`] they may borrow from.
pub trait Header<'a>: Sized {
    /// Reads the fields.
    fn decode(ext: &'a ExtFields<'_>) -> Result<Self, HeaderError>;
}

/// No header: any fields will do.
impl<'a> Header<'a> for () {
    fn decode(_: &'a ExtFields<'_>) -> Result<Self, HeaderError> {
        Ok(())
    }
}

/// A type that one field can have.
trait Field<'a>: Sized {
    /// Reads the field; `Err` says what it should have been.
    fn read(raw: Option<&'a str>) -> Result<Self, &'static str>;
    /// Writes the field, if there is something to write.
    fn put(&self, name: &str, out: &mut ExtWriter<'_>);
}

/// Reads one field of `ext`.
#[inline]
fn field<'a, F: Field<'a>>(ext: &'a ExtFields<'_>, name: &'static str) -> Result<F, HeaderError> {
    let raw = ext.get(name);
    F::read(raw).map_err(|expected| unreadable(name, raw, expected))
}

#[cold]
fn unreadable(field: &'static str, raw: Option<&str>, expected: &'static str) -> HeaderError {
    HeaderError { field, value: raw.unwrap_or_default().chars().take(64).collect(), expected }
}

impl<'a> Field<'a> for &'a str {
    fn read(raw: Option<&'a str>) -> Result<Self, &'static str> {
        Ok(raw.unwrap_or_default())
    }
    fn put(&self, name: &str, out: &mut ExtWriter<'_>) {
        out.text(name, self);
    }
}

impl Field<'_> for String {
    fn read(raw: Option<&str>) -> Result<Self, &'static str> {
        Ok(raw.unwrap_or_default().to_owned())
    }
    fn put(&self, name: &str, out: &mut ExtWriter<'_>) {
        out.text(name, self);
    }
}

macro_rules! number_field {
    ($($type:ty: $expected:literal),+) => {
        $(
            impl Field<'_> for $type {
                fn read(raw: Option<&str>) -> Result<Self, &'static str> {
                    match raw {
                        None | Some("") => Ok(0),
                        Some(text) => text.parse().or_else(|_| text.trim().parse()).map_err(|_| $expected),
                    }
                }
                fn put(&self, name: &str, out: &mut ExtWriter<'_>) {
                    out.number(name, i64::from(*self));
                }
            }
        )+
    };
}

number_field!(i32: "a 32 bit whole number", i64: "a 64 bit whole number");

impl Field<'_> for bool {
    fn read(raw: Option<&str>) -> Result<Self, &'static str> {
        // As Java's Boolean.parseBoolean: whatever is not "true" is false.
        Ok(raw.is_some_and(|text| text.eq_ignore_ascii_case("true")))
    }
    fn put(&self, name: &str, out: &mut ExtWriter<'_>) {
        out.flag(name, *self);
    }
}

impl<'a, F: Field<'a>> Field<'a> for Option<F> {
    fn read(raw: Option<&'a str>) -> Result<Self, &'static str> {
        raw.map(|text| F::read(Some(text))).transpose()
    }
    fn put(&self, name: &str, out: &mut ExtWriter<'_>) {
        if let Some(value) = self {
            value.put(name, out);
        }
    }
}

/// Declares a header as a table of `field: type = "wireName"`; see the module documentation.
macro_rules! header {
    (
        $(#[$doc:meta])*
        $name:ident<$a:lifetime> { $( $(#[$field_doc:meta])* $field:ident: $type:ty = $wire:literal, )+ }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name<$a> {
            $( #[doc = concat!("`", $wire, "`.")] $(#[$field_doc])* pub $field: $type, )+
        }

        impl<$a> $crate::remoting::request::Header<$a> for $name<$a> {
            fn decode(
                ext: &$a $crate::remoting::header::ExtFields<'_>,
            ) -> Result<Self, $crate::remoting::request::HeaderError> {
                Ok(Self { $( $field: $crate::remoting::request::field(ext, $wire)?, )+ })
            }
        }

        impl $crate::remoting::header::ExtWrite for $name<'_> {
            fn write(&self, out: &mut $crate::remoting::header::ExtWriter<'_>) {
                $( $crate::remoting::request::Field::put(&self.$field, $wire, out); )+
            }
        }
    };
    (
        $(#[$doc:meta])*
        $name:ident { $( $(#[$field_doc:meta])* $field:ident: $type:ty = $wire:literal, )+ }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $( #[doc = concat!("`", $wire, "`.")] $(#[$field_doc])* pub $field: $type, )+
        }

        impl $crate::remoting::request::Header<'_> for $name {
            fn decode(
                ext: &$crate::remoting::header::ExtFields<'_>,
            ) -> Result<Self, $crate::remoting::request::HeaderError> {
                Ok(Self { $( $field: $crate::remoting::request::field(ext, $wire)?, )+ })
            }
        }

        impl $crate::remoting::header::ExtWrite for $name {
            fn write(&self, out: &mut $crate::remoting::header::ExtWriter<'_>) {
                $( $crate::remoting::request::Field::put(&self.$field, $wire, out); )+
            }
        }
    };
}

use header;

#[cfg(test)]
mod tests;
