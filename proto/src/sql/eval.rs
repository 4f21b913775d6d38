//! The value of an expression for one message.

use std::cmp::Ordering;

use super::node::{Node, Part, Relation, Sense};

/// Why an expression has no value for a message; the message does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// A property is not a number of the type it is compared with.
    #[error("a property is no number of the type that it is compared with")]
    NotANumber,
    /// A condition is compared with a text.
    #[error("a condition and a text cannot be compared: put the text first")]
    WrongTypes,
}

/// A value while an expression is evaluated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i32),
    Long(i64),
    Double(f64),
    Text(&'a str),
}

/// Value of a condition.
pub(super) fn truth(node: &Node, found: &[Option<&str>]) -> Result<Option<bool>, EvalError> {
    match node {
        Node::And(parts) => row(parts, found, false),
        Node::Or(parts) => row(parts, found, true),
        Node::Not(part) => Ok(truth(part, found)?.map(|value| !value)),
        Node::Truth(part) => Ok(match value(part, found)? {
            Value::Null => None,
            Value::Bool(value) => Some(value),
            _ => Some(false),
        }),
        Node::Equal(sides) => equal(value(&sides.0, found)?, value(&sides.1, found)?),
        Node::IsNull(part) => Ok(Some(value(part, found)? == Value::Null)),
        Node::Compare(relation, sides) => related(*relation, value(&sides.0, found)?, &sides.1, found),
        Node::Between(sense, operands) => between(*sense, operands, found),
        Node::Search { sense, part, inside, text } => match value(inside, found)? {
            Value::Text(inside) if !inside.is_empty() && !text.is_empty() => {
                let there = match part {
                    Part::Anywhere => inside.contains(&**text),
                    Part::Start => inside.starts_with(&**text),
                    Part::End => inside.ends_with(&**text),
                };
                Ok(Some(sense.of(there)))
            }
            _ => Ok(Some(false)),
        },
        Node::In { sense, property, texts } => Ok(text_of(*property, found)
            .map(|text| sense.of(texts.binary_search_by(|listed| (**listed).cmp(text)).is_ok()))),
        Node::Literal(literal) => Ok(match literal.value() {
            Value::Bool(value) => Some(value),
            _ => None,
        }),
        Node::Property(_) | Node::Negate(_) => Ok(None),
    }
}

/// Conditions from left to right until one `decides`: false for AND, true for OR. Without it null if one is null.
fn row(parts: &[Node], found: &[Option<&str>], decides: bool) -> Result<Option<bool>, EvalError> {
    let mut result = Some(!decides);
    for part in parts {
        match truth(part, found)? {
            Some(value) if value == decides => return Ok(Some(decides)),
            Some(_) => {}
            None => result = None,
        }
    }
    Ok(result)
}

/// Whether a value and another one, which is looked at only if there is the first, have this order.
fn related(
    relation: Relation,
    left: Value<'_>,
    right: &Node,
    found: &[Option<&str>],
) -> Result<Option<bool>, EvalError> {
    if left == Value::Null {
        return Ok(None);
    }
    let order = match (left, value(right, found)?) {
        (_, Value::Null) => return Ok(None),
        (Value::Text(left), Value::Text(right)) => double(left)?.total_cmp(&double(right)?),
        (left, right) => compare(left, right)?,
    };
    Ok(Some(relation.holds(order)))
}

/// `low <= value AND value <= high`, or `value < low OR value > high`.
fn between(
    sense: Sense,
    (inner, low, high): &(Node, Node, Node),
    found: &[Option<&str>],
) -> Result<Option<bool>, EvalError> {
    let inner = value(inner, found)?;
    let (from, to) = match sense {
        Sense::Is => (Relation::GreaterOrEqual, Relation::LessOrEqual),
        Sense::IsNot => (Relation::Less, Relation::Greater),
    };
    let decides = sense == Sense::IsNot;
    let first = related(from, inner, low, found)?;
    if first == Some(decides) {
        return Ok(first);
    }
    let second = related(to, inner, high, found)?;
    if second == Some(decides) {
        return Ok(second);
    }
    Ok(first.and(second))
}

fn text_of<'a>(property: usize, found: &[Option<&'a str>]) -> Option<&'a str> {
    found.get(property).copied().flatten()
}

fn value<'a>(node: &'a Node, found: &[Option<&'a str>]) -> Result<Value<'a>, EvalError> {
    Ok(match node {
        Node::Literal(literal) => literal.value(),
        Node::Property(property) => text_of(*property, found).map_or(Value::Null, Value::Text),
        Node::Negate(part) => match value(part, found)? {
            Value::Int(value) => Value::Int(value.wrapping_neg()),
            Value::Long(value) => Value::Long(value.wrapping_neg()),
            Value::Double(value) => Value::Double(-value),
            Value::Null | Value::Bool(_) | Value::Text(_) => Value::Null,
        },
        condition => truth(condition, found)?.map_or(Value::Null, Value::Bool),
    })
}

/// Nulls are equal; null and a value is null, a value and null is false.
fn equal(left: Value<'_>, right: Value<'_>) -> Result<Option<bool>, EvalError> {
    match (left, right) {
        (Value::Null, Value::Null) => Ok(Some(true)),
        (Value::Null, _) => Ok(None),
        (_, Value::Null) => Ok(Some(false)),
        (Value::Text(left), Value::Text(right)) => Ok(Some(left == right)),
        (left, right) => Ok(Some(compare(left, right)?.is_eq())),
    }
}

/// Order of two values of which a text is read as the other's type. Types that have none in common are unequal.
pub(super) fn compare(left: Value<'_>, right: Value<'_>) -> Result<Ordering, EvalError> {
    use Value::{Bool, Double, Int, Long, Null, Text};
    Ok(match (left, right) {
        (Bool(left), Bool(right)) => left.cmp(&right),
        (Bool(_), Text(_)) => return Err(EvalError::WrongTypes),
        (Text(left), Bool(right)) => left.eq_ignore_ascii_case("true").cmp(&right),
        (Int(left), Int(right)) => left.cmp(&right),
        (Int(left), Long(right)) => i64::from(left).cmp(&right),
        (Long(left), Int(right)) => left.cmp(&i64::from(right)),
        (Long(left), Long(right)) => left.cmp(&right),
        (Int(left), Double(right)) => f64::from(left).total_cmp(&right),
        (Double(left), Int(right)) => left.total_cmp(&f64::from(right)),
        (Long(left), Double(right)) => long_as_double(left).total_cmp(&right),
        (Double(left), Long(right)) => left.total_cmp(&long_as_double(right)),
        (Double(left), Double(right)) => left.total_cmp(&right),
        (Int(left), Text(right)) => left.cmp(&int(right)?),
        (Text(left), Int(right)) => int(left)?.cmp(&right),
        (Long(left), Text(right)) => left.cmp(&long(right)?),
        (Text(left), Long(right)) => long(left)?.cmp(&right),
        (Double(left), Text(right)) => left.total_cmp(&double(right)?),
        (Text(left), Double(right)) => double(left)?.total_cmp(&right),
        (Text(left), Text(right)) => left.cmp(right),
        (Null | Bool(_), _) | (_, Null | Bool(_)) => Ordering::Less,
    })
}

#[expect(clippy::cast_precision_loss, reason = "as Java widens a long")]
const fn long_as_double(value: i64) -> f64 {
    value as f64
}

/// Java's `Integer.parseInt`.
fn int(text: &str) -> Result<i32, EvalError> {
    text.parse().map_err(|_| EvalError::NotANumber)
}

/// Java's `Long.parseLong`.
fn long(text: &str) -> Result<i64, EvalError> {
    text.parse().map_err(|_| EvalError::NotANumber)
}

/// Java's `Double.parseDouble`, but for hexadecimal digits: blanks around it and a type's letter behind it are no
/// part of the number.
fn double(text: &str) -> Result<f64, EvalError> {
    let text = text.trim_matches(|c| c <= ' ');
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let value = match digits {
        "NaN" => return Ok(f64::NAN),
        "Infinity" => f64::INFINITY,
        digits => {
            let digits = digits.strip_suffix(['f', 'F', 'd', 'D']).unwrap_or(digits);
            if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
                return Err(EvalError::NotANumber);
            }
            digits.parse().map_err(|_| EvalError::NotANumber)?
        }
    };
    Ok(if negative { -value } else { value })
}
