//! From words to an expression, by recursive descent with one word of look-ahead.

use super::lex::{Keyword, Lexer, Token};
use super::node::{Literal, Node, Part, Relation, Sense};
use super::{DEPTH_MAX, EXPRESSION_BYTES_MAX, PROPERTIES_MAX, Sql, SqlError, TERMS_MAX};

/// A node, where its text begins, and how deep it is nested.
struct Built {
    node: Node,
    at: usize,
    height: usize,
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    token: Token<'a>,
    /// Where the token begins.
    at: usize,
    names: Vec<Box<str>>,
    terms: usize,
    /// Calls of `unary` that are under way.
    depth: usize,
}

pub(super) fn parse(text: &str) -> Result<Sql, SqlError> {
    if text.len() > EXPRESSION_BYTES_MAX {
        return Err(SqlError::TooLong { bytes: text.len() });
    }
    let mut lexer = Lexer::new(text);
    let (token, at) = lexer.next()?;
    let mut parser = Parser { lexer, token, at, names: Vec::new(), terms: 0, depth: 0 };
    if token == Token::End {
        return Err(lexer.wrong(at, "it is empty: write a condition, like a > 5"));
    }
    let built = parser.or()?;
    let root = parser.condition(built)?.node;
    let ignored_from = (parser.token != Token::End).then(|| parser.lexer.character(parser.at));
    Ok(Sql { root, names: parser.names, terms: parser.terms, ignored_from })
}

impl<'a> Parser<'a> {
    fn wrong(&self, at: usize, what: impl Into<String>) -> SqlError {
        self.lexer.wrong(at, what)
    }

    fn expected(&self, what: &str) -> SqlError {
        self.wrong(self.at, format!("expected {what}, found {}", self.token))
    }

    /// The current word; the next one takes its place.
    fn take(&mut self) -> Result<(Token<'a>, usize), SqlError> {
        let taken = (self.token, self.at);
        (self.token, self.at) = self.lexer.next()?;
        Ok(taken)
    }

    /// Whether the current word is this one; then it is passed over.
    fn accept(&mut self, token: Token<'_>) -> Result<bool, SqlError> {
        let found = self.token == token;
        if found {
            self.take()?;
        }
        Ok(found)
    }

    /// One operation more, whose operands are `height` deep.
    fn built(&mut self, node: Result<Node, &str>, at: usize, height: usize) -> Result<Built, SqlError> {
        let node = node.map_err(|what| self.wrong(at, what))?;
        self.terms += 1;
        if self.terms > TERMS_MAX {
            let what = format!("it has more than {TERMS_MAX} operations: write fewer, or a list with IN");
            return Err(self.wrong(at, what));
        }
        if height >= DEPTH_MAX {
            return Err(self.too_deep(at));
        }
        Ok(Built { node, at, height: height + 1 })
    }

    fn too_deep(&self, at: usize) -> SqlError {
        self.wrong(at, format!("it is nested more than {DEPTH_MAX} deep: write it with fewer levels"))
    }

    fn condition(&self, built: Built) -> Result<Built, SqlError> {
        let Built { node, at, height } = built;
        let wrapped = matches!(node, Node::Property(_));
        let node = node.into_condition().map_err(|what| self.wrong(at, what))?;
        Ok(Built { node, at, height: height + usize::from(wrapped) })
    }

    fn or(&mut self) -> Result<Built, SqlError> {
        self.row(Keyword::Or, Self::and, Node::Or)
    }

    fn and(&mut self) -> Result<Built, SqlError> {
        self.row(Keyword::And, Self::equality, Node::And)
    }

    /// One part, or several with a keyword between them.
    fn row(
        &mut self,
        keyword: Keyword,
        part: impl Fn(&mut Self) -> Result<Built, SqlError>,
        make: impl Fn(Vec<Node>) -> Node,
    ) -> Result<Built, SqlError> {
        let first = part(self)?;
        if self.token != Token::Key(keyword) {
            return Ok(first);
        }
        let at = first.at;
        let first = self.condition(first)?;
        let (mut height, mut parts) = (first.height, vec![first.node]);
        while self.accept(Token::Key(keyword))? {
            let next = part(self)?;
            let next = self.condition(next)?;
            height = height.max(next.height);
            parts.push(next.node);
        }
        self.built(Ok(make(parts)), at, height)
    }

    fn equality(&mut self) -> Result<Built, SqlError> {
        let mut left = self.comparison()?;
        loop {
            let sense = match self.token {
                Token::Sign("=") => Sense::Is,
                Token::Sign("<>") => Sense::IsNot,
                Token::Key(Keyword::Is) => {
                    left = self.is_null(left)?;
                    continue;
                }
                _ => return Ok(left),
            };
            let (_, at) = self.take()?;
            let right = self.comparison()?;
            let height = left.height.max(right.height);
            let node = Node::equal(left.node, right.node);
            left = self.built(node.map(|node| with_sense(sense, node)), at, height)?;
        }
    }

    fn is_null(&mut self, left: Built) -> Result<Built, SqlError> {
        let (_, at) = self.take()?;
        let sense = if self.accept(Token::Key(Keyword::Not))? { Sense::IsNot } else { Sense::Is };
        if !self.accept(Token::Key(Keyword::Null))? {
            return Err(self.expected("NULL or NOT NULL after IS"));
        }
        let node = with_sense(sense, Node::IsNull(Box::new(left.node)));
        self.built(Ok(node), at, left.height)
    }

    fn comparison(&mut self) -> Result<Built, SqlError> {
        let mut left = self.unary()?;
        loop {
            let relation = match self.token {
                Token::Sign(">") => Relation::Greater,
                Token::Sign(">=") => Relation::GreaterOrEqual,
                Token::Sign("<") => Relation::Less,
                Token::Sign("<=") => Relation::LessOrEqual,
                Token::Key(Keyword::Not) => {
                    let (_, at) = self.take()?;
                    let Token::Key(keyword) = self.token else {
                        return Err(self.expected(WORDS_AFTER_NOT));
                    };
                    left = self.worded(left, Sense::IsNot, keyword, at)?;
                    continue;
                }
                Token::Key(keyword) if is_worded(keyword) => {
                    left = self.worded(left, Sense::Is, keyword, self.at)?;
                    continue;
                }
                _ => return Ok(left),
            };
            let (_, at) = self.take()?;
            let right = self.unary()?;
            let height = left.height.max(right.height);
            left = self.built(Node::compare(relation, left.node, right.node), at, height)?;
        }
    }

    /// A comparison that is written with a word, which is the current one.
    fn worded(&mut self, left: Built, sense: Sense, keyword: Keyword, at: usize) -> Result<Built, SqlError> {
        let part = match keyword {
            Keyword::Contains => Part::Anywhere,
            Keyword::StartsWith => Part::Start,
            Keyword::EndsWith => Part::End,
            Keyword::In => return self.is_in(&left, sense, at),
            Keyword::Between => return self.between(left, sense, at),
            _ => return Err(self.expected(WORDS_AFTER_NOT)),
        };
        self.take()?;
        let text = self.text()?;
        self.built(Node::search(sense, part, left.node, text), at, left.height)
    }

    fn is_in(&mut self, left: &Built, sense: Sense, at: usize) -> Result<Built, SqlError> {
        self.take()?;
        if !self.accept(Token::Sign("("))? {
            return Err(self.expected("a list like ('x', 'y') after IN"));
        }
        let mut texts = vec![self.text()?];
        while self.accept(Token::Sign(","))? {
            texts.push(self.text()?);
        }
        if !self.accept(Token::Sign(")"))? {
            return Err(self.expected("`,` or `)`"));
        }
        self.built(Node::is_in(sense, &left.node, texts), at, left.height)
    }

    fn between(&mut self, left: Built, sense: Sense, at: usize) -> Result<Built, SqlError> {
        self.take()?;
        let low = self.unary()?;
        if !self.accept(Token::Key(Keyword::And))? {
            return Err(self.expected("AND and the larger number"));
        }
        let high = self.unary()?;
        let height = left.height.max(low.height).max(high.height);
        self.built(Node::between(sense, left.node, low.node, high.node), at, height)
    }

    fn text(&mut self) -> Result<Box<str>, SqlError> {
        let Token::Text(text) = self.token else {
            return Err(self.expected("a text between single quotes"));
        };
        self.take()?;
        Ok(text.replace("''", "'").into())
    }

    fn unary(&mut self) -> Result<Built, SqlError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.too_deep(self.at));
        }
        let built = match self.token {
            Token::Sign("+") => {
                self.take()?;
                self.unary()?
            }
            Token::Sign("-") => {
                let (_, at) = self.take()?;
                let value = self.unary()?;
                self.built(Ok(Node::Negate(Box::new(value.node))), at, value.height)?
            }
            Token::Key(Keyword::Not) => {
                let (_, at) = self.take()?;
                let value = self.unary()?;
                let value = self.condition(value)?;
                self.built(Ok(value.node.not()), at, value.height)?
            }
            _ => self.primary()?,
        };
        self.depth -= 1;
        Ok(built)
    }

    fn primary(&mut self) -> Result<Built, SqlError> {
        let at = self.at;
        let node = match self.token {
            Token::Sign("(") => {
                self.take()?;
                let inner = self.or()?;
                if !self.accept(Token::Sign(")"))? {
                    return Err(self.expected("`)`"));
                }
                return Ok(inner);
            }
            Token::Text(_) => {
                let text = self.text()?;
                return Ok(Built { node: Node::Literal(Literal::Text(text)), at, height: 1 });
            }
            Token::Name(name) => Node::Property(self.property(name)?),
            Token::Whole(digits) => Node::Literal(self.whole(digits)?),
            Token::Decimal(digits) => Node::Literal(self.decimal(digits)?),
            Token::Key(Keyword::True) => Node::Literal(Literal::Bool(true)),
            Token::Key(Keyword::False) => Node::Literal(Literal::Bool(false)),
            Token::Key(Keyword::Null) => Node::Literal(Literal::Null),
            Token::End | Token::Sign(_) | Token::Key(_) => {
                return Err(self.expected("a property, a number, a text or `(`"));
            }
        };
        self.take()?;
        Ok(Built { node, at, height: 1 })
    }

    /// Place of a property in the list of names.
    fn property(&mut self, name: &str) -> Result<usize, SqlError> {
        if let Some(place) = self.names.iter().position(|known| **known == *name) {
            return Ok(place);
        }
        if self.names.len() == PROPERTIES_MAX {
            let what = format!("it names more than {PROPERTIES_MAX} properties: write it with fewer");
            return Err(self.wrong(self.at, what));
        }
        self.names.push(name.into());
        Ok(self.names.len() - 1)
    }

    fn whole(&self, digits: &str) -> Result<Literal, SqlError> {
        let value: i64 = digits.parse().map_err(|_| {
            self.wrong(self.at, format!("the number is beyond {}: write it with a point", i64::MAX))
        })?;
        Ok(i32::try_from(value).map_or(Literal::Long(value), Literal::Int))
    }

    fn decimal(&self, digits: &str) -> Result<Literal, SqlError> {
        let value: f64 = digits.parse().map_err(|_| self.wrong(self.at, "this is no number"))?;
        if value.is_finite() && value > 0.0 {
            return Ok(Literal::Double(value));
        }
        let what = "a number with a point or an exponent must be above 0 and fit 64 bits: zero is written 0";
        Err(self.wrong(self.at, what))
    }
}

const WORDS_AFTER_NOT: &str = "CONTAINS, STARTSWITH, ENDSWITH, BETWEEN or IN after NOT";

const fn is_worded(keyword: Keyword) -> bool {
    matches!(
        keyword,
        Keyword::Contains | Keyword::StartsWith | Keyword::EndsWith | Keyword::Between | Keyword::In
    )
}

fn with_sense(sense: Sense, node: Node) -> Node {
    match sense {
        Sense::Is => node,
        Sense::IsNot => node.not(),
    }
}
