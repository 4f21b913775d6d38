//! What a consumer wants of a topic.

use gantry_proto::record::TagExpression;

use crate::error::{Error, Result};
use crate::message::Received;

/// What a builder was told to filter by.
#[derive(Clone, Debug)]
pub(crate) enum Expression {
    /// `A || B`, or `*` for everything.
    Tags(String),
    /// An SQL92 expression.
    Sql(String),
}

impl Expression {
    /// Reads tags; what SQL92 means is the brokers' to say.
    pub(crate) fn read(&self) -> Result<Selector> {
        match self {
            Self::Tags(tags) => TagExpression::parse(tags)
                .map(Selector::Tags)
                .map_err(|error| Error::invalid(error.to_string())),
            Self::Sql(text) => Ok(Selector::Sql(text.clone())),
        }
    }
}

/// A filter that brokers apply.
#[derive(Clone, Debug)]
pub(crate) enum Selector {
    /// Messages with one of these tags. Brokers compare their hashes only.
    Tags(TagExpression),
    /// Messages with properties that match an SQL92 expression.
    Sql(String),
}

impl Selector {
    /// The name of this kind of filter on the wire.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Tags(_) => "TAG",
            Self::Sql(_) => "SQL92",
        }
    }

    /// The expression.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Tags(tags) => tags.to_string(),
            Self::Sql(text) => text.clone(),
        }
    }

    /// Leaves out messages whose tag only shares its hash with a wanted one.
    pub(crate) fn retain(&self, messages: &mut Vec<Received>) {
        if let Self::Tags(tags @ TagExpression::Tags { .. }) = self {
            messages.retain(|message| tags.matches_tag(message.tag()));
        }
    }
}
