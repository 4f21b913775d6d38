//! What an expression consists of, and which operands go together.

use std::cmp::Ordering;

use super::eval::{Value, compare};

/// A value that stands in the expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i32),
    Long(i64),
    Double(f64),
    Text(Box<str>),
}

impl Literal {
    pub(super) fn value(&self) -> Value<'_> {
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(value) => Value::Int(*value),
            Self::Long(value) => Value::Long(*value),
            Self::Double(value) => Value::Double(*value),
            Self::Text(value) => Value::Text(value),
        }
    }
}

/// How two numbers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

impl Relation {
    pub(super) fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
        }
    }
}

/// Where in a text another one is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Anywhere,
    Start,
    End,
}

/// Whether a condition is wanted, or its opposite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sense {
    Is,
    IsNot,
}

impl Sense {
    pub(super) fn of(self, found: bool) -> bool {
        found == (self == Self::Is)
    }
}

/// A part of an expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Literal(Literal),
    /// A property, by its place in the list of names.
    Property(usize),
    Negate(Box<Self>),
    Not(Box<Self>),
    /// A property where a condition is expected: null or false, for text is no truth.
    Truth(Box<Self>),
    And(Vec<Self>),
    Or(Vec<Self>),
    Equal(Box<(Self, Self)>),
    IsNull(Box<Self>),
    Compare(Relation, Box<(Self, Self)>),
    /// Value, lower and upper bound.
    Between(Sense, Box<(Self, Self, Self)>),
    Search {
        sense: Sense,
        part: Part,
        inside: Box<Self>,
        text: Box<str>,
    },
    In {
        sense: Sense,
        property: usize,
        /// Sorted.
        texts: Vec<Box<str>>,
    },
}

impl Node {
    pub(super) fn not(self) -> Self {
        Self::Not(Box::new(self))
    }

    /// Whether its value is true, false or null.
    const fn is_condition(&self) -> bool {
        !matches!(
            self,
            Self::Property(_)
                | Self::Negate(_)
                | Self::Literal(Literal::Int(_) | Literal::Long(_) | Literal::Double(_) | Literal::Text(_))
        )
    }

    /// As an operand of AND, OR and NOT.
    pub(super) fn into_condition(self) -> Result<Self, &'static str> {
        match self {
            Self::Property(_) => Ok(Self::Truth(Box::new(self))),
            node if node.is_condition() => Ok(node),
            _ => Err("this is a value, not a condition: compare it with something"),
        }
    }

    pub(super) fn equal(left: Self, right: Self) -> Result<Self, &'static str> {
        let null = Self::Literal(Literal::Null);
        if left == null || right == null {
            return Err("nothing is compared with NULL: write IS NULL or IS NOT NULL");
        }
        if let (Self::Literal(Literal::Bool(_)), Self::Literal(value)) = (&left, &right)
            && !matches!(value, Literal::Bool(_))
        {
            return Err("TRUE and FALSE are not compared with a number or a text");
        }
        Ok(Self::Equal(Box::new((left, right))))
    }

    pub(super) fn compare(relation: Relation, left: Self, right: Self) -> Result<Self, &'static str> {
        check_ordered(&[&left, &right])?;
        Ok(Self::Compare(relation, Box::new((left, right))))
    }

    pub(super) fn between(sense: Sense, value: Self, low: Self, high: Self) -> Result<Self, &'static str> {
        if let (Self::Literal(low), Self::Literal(high)) = (&low, &high) {
            match (low.value(), high.value()) {
                (Value::Null, _) | (_, Value::Null) => return Err("BETWEEN has no NULL: give two numbers"),
                (low, high) if compare(high, low).map_or(true, Ordering::is_lt) => {
                    return Err("BETWEEN has the smaller number first, and numbers only");
                }
                _ => {}
            }
        }
        check_ordered(&[&value, &low, &high])?;
        Ok(Self::Between(sense, Box::new((value, low, high))))
    }

    pub(super) fn search(
        sense: Sense,
        part: Part,
        inside: Self,
        text: Box<str>,
    ) -> Result<Self, &'static str> {
        match &inside {
            Self::Literal(Literal::Text(_)) | Self::Property(_) | Self::Negate(_) => {
                Ok(Self::Search { sense, part, inside: Box::new(inside), text })
            }
            _ => Err("only a property or a text contains a text"),
        }
    }

    pub(super) fn is_in(sense: Sense, value: &Self, mut texts: Vec<Box<str>>) -> Result<Self, &'static str> {
        let Self::Property(property) = *value else {
            return Err("only a property is looked for IN a list");
        };
        texts.sort_unstable();
        Ok(Self::In { sense, property, texts })
    }
}

/// Only numbers and properties have an order.
fn check_ordered(operands: &[&Node]) -> Result<(), &'static str> {
    let is_ordered = |node: &&Node| match node {
        Node::Literal(value) => matches!(value, Literal::Int(_) | Literal::Long(_) | Literal::Double(_)),
        node => !node.is_condition(),
    };
    if operands.iter().all(is_ordered) {
        return Ok(());
    }
    Err("only numbers and properties are compared by order: others by = and <>")
}
