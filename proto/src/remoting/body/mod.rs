//! JSON bodies of requests and replies, and of the configuration files that have the same shapes.
//!
//! Reading is lenient ([`json::from_slice`]): every field has a default, unknown
//! fields are ignored, or kept where the value is written back later (`extra`). Texts of an enum that are
//! unknown here are kept too. Writing gives the form that every Java version reads.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::DecodeError;
use crate::json::{self, IntKeys};

pub mod cluster;
pub mod connection;
pub mod consume;
pub mod drain;
pub mod group;
pub mod heartbeat;
pub mod lists;
pub mod offsets;
pub mod queues;
pub mod route;
pub mod stats;
pub mod timer;
pub mod topic;
pub mod transaction;

/// A JSON body.
pub trait Body: Serialize + DeserializeOwned {
    /// The form for Java: integer keys without quotes, structs as keys.
    fn to_json(&self) -> Vec<u8> {
        json::to_vec(self, IntKeys::Bare)
    }

    /// The same with quoted integer keys: standard JSON as long as no struct is a key.
    fn to_standard_json(&self) -> Vec<u8> {
        json::to_vec(self, IntKeys::Quoted)
    }

    /// Reads either form, in any dialect.
    fn from_json(bytes: &[u8]) -> Result<Self, DecodeError> {
        json::from_slice(bytes)
    }
}

/// Declares a body: a struct that serde reads leniently under RocketMQ's names, and that is a [`Body`].
macro_rules! body {
    (
        $(#[$attribute:meta])*
        $name:ident { $( $(#[$field_attribute:meta])* $field:ident: $type:ty, )* }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        pub struct $name {
            $( #[doc = concat!("The field `", stringify!($field), "` of the body.")] $(#[$field_attribute])* pub $field: $type, )*
        }

        impl $crate::remoting::body::Body for $name {}
    };
}

/// Declares an enum of texts; others are kept in `Other`. The first is the default.
macro_rules! texts {
    (
        $(#[$doc:meta])*
        $name:ident { $( $(#[$variant_doc:meta])* $variant:ident = $text:literal, )+ }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $( #[doc = concat!("`", $text, "`.")] $(#[$variant_doc])* $variant, )+
            /// A text that is not known here.
            Other(String),
        }

        impl $name {
            /// The text in JSON.
            pub fn as_str(&self) -> &str {
                match self {
                    $( Self::$variant => $text, )+
                    Self::Other(text) => text,
                }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                [$( Self::$variant, )+].into_iter().next().unwrap_or(Self::Other(String::new()))
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                match text.as_str() {
                    $( $text => Self::$variant, )+
                    _ => Self::Other(text),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <String as serde::Deserialize>::deserialize(deserializer).map(Self::from)
            }
        }
    };
}

use body;
use texts;

#[cfg(test)]
mod tests;
