//! SQL92 filters: expressions over the properties of a message, as RocketMQ's clients write them.
//!
//! ```text
//!  or          = and { OR and }
//!  and         = equality { AND equality }
//!  equality    = comparison { ( "=" | "<>" ) comparison | IS [NOT] NULL }
//!  comparison  = unary { ( ">" | ">=" | "<" | "<=" ) unary
//!                      | [NOT] ( CONTAINS | STARTSWITH | ENDSWITH ) text
//!                      | [NOT] BETWEEN unary AND unary
//!                      | [NOT] IN "(" text { "," text } ")" }
//!  unary       = ( "+" | "-" | NOT ) unary | literal | property | "(" or ")"
//!  literal     = 'text' | 5 | 5L | 1.5 | .5 | 5. | 1e2 | TRUE | FALSE | NULL
//! ```
//!
//! What follows a complete expression is not part of it and ignored, as Apache's broker does; see
//! [`Sql::ignored_from`].
//!
//! Logic has three values. A property that a message lacks is null, and so is what is compared with it, except:
//! two nulls are equal, and nothing that is there equals null. A property is text; compared with a number it is
//! read as one of that type, and a text that is none ends the evaluation: such a message does not match.
//!
//! An expression is bounded in bytes, nesting, terms and properties, so that no input overflows the stack or takes
//! more than linear time, and no message more than terms times bytes of its properties.

mod eval;
mod lex;
mod node;
mod parse;
#[cfg(test)]
mod tests;

pub use eval::EvalError;

use crate::record::Properties;
use node::Node;

/// Longest expression, in bytes.
pub const EXPRESSION_BYTES_MAX: usize = 16 * 1024;
/// Deepest nesting of parentheses, signs, NOTs and chained comparisons. Rows of AND and OR do not nest.
pub const DEPTH_MAX: usize = 100;
/// Comparisons and other operations of one expression; the texts of one IN are one.
pub const TERMS_MAX: usize = 1024;
/// Different properties that one expression names.
pub const PROPERTIES_MAX: usize = 128;

/// Properties up to which an evaluation needs the least memory.
const FEW: usize = 8;

/// Why a text is no expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SqlError {
    /// It is too long to look at.
    #[error(
        "the SQL92 expression has {bytes} bytes, the limit is {EXPRESSION_BYTES_MAX}: write a shorter one"
    )]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// Something in it is wrong.
    #[error("the SQL92 expression is wrong at character {at}: {what}")]
    Wrong {
        /// Number of the character at which it was noticed, from 1.
        at: usize,
        /// What is wrong there, and what to write.
        what: String,
    },
}

/// An expression, ready to be held against messages.
#[derive(Clone, Debug, PartialEq)]
pub struct Sql {
    root: Node,
    /// The properties it names; nodes hold places in this list.
    names: Vec<Box<str>>,
    terms: usize,
    ignored_from: Option<usize>,
}

impl Sql {
    /// Reads an expression.
    pub fn parse(text: &str) -> Result<Self, SqlError> {
        parse::parse(text)
    }

    /// Number of the character, from 1, at which the expression has ended although the text goes on.
    pub const fn ignored_from(&self) -> Option<usize> {
        self.ignored_from
    }

    /// Operations that evaluating it takes at the most.
    pub const fn terms(&self) -> usize {
        self.terms
    }

    /// Whether a message with these properties is wanted.
    pub fn matches(&self, properties: Properties<'_>) -> bool {
        self.evaluate(properties.iter()) == Ok(Some(true))
    }

    /// The expression's value for a message with these properties: `None` is null. Of two properties with the same
    /// name the later counts.
    pub fn evaluate<'a>(
        &'a self,
        properties: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<Option<bool>, EvalError> {
        if self.names.len() <= FEW {
            self.evaluate_in(&mut [None; FEW], properties)
        } else {
            self.evaluate_in(&mut [None; PROPERTIES_MAX], properties)
        }
    }

    fn evaluate_in<'a>(
        &'a self,
        found: &mut [Option<&'a str>],
        properties: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<Option<bool>, EvalError> {
        for (name, value) in properties {
            let place = self.names.iter().position(|wanted| **wanted == *name);
            if let Some(slot) = place.and_then(|place| found.get_mut(place)) {
                *slot = Some(value);
            }
        }
        eval::truth(&self.root, found)
    }
}
