//! From words and signs to a condition, by recursive descent.
//!
//! ```text
//! any       = all { OR all }
//! all       = negation { AND negation }
//! negation  = NOT negation | predicate
//! predicate = sum [ comparison sum | IS [NOT] NULL | [NOT] ( IN list | LIKE text [ESCAPE text]
//!                                                          | BETWEEN sum AND sum ) ]
//! sum       = product { (+|-) product }
//! product   = factor { (*|/) factor }
//! factor    = (-|+) factor | text | number | TRUE | FALSE | header | property | "(" any ")"
//! list      = "(" element { , element } ")"      element = text | [-|+] number
//! ```
//!
//! What stands in parentheses may turn out a condition or a value, so every rule answers a [`Node`], and whoever needs
//! one of the two says so. Depth and number of values are counted: the text comes from outside. The rules from
//! `predicate` down to `sum` are in a file of their own.

mod predicate;

use super::condition::{Condition, Kind, Value};
use super::error::{FilterError, FilterProblem};
use super::lexer::{Keyword, Lexer, Sign, Token, TokenKind, shortened};
use super::number::Operator;
use crate::model::limits::{FILTER_BYTES_MAX, FILTER_DEPTH_MAX, FILTER_NODES_MAX};

/// Reads a whole filter.
///
/// # Errors
/// Names the first thing that is wrong, and where it stands.
pub(super) fn parse(text: &str) -> Result<Condition, FilterError> {
    if text.len() > FILTER_BYTES_MAX {
        let position = text.floor_char_boundary(FILTER_BYTES_MAX);
        return Err(FilterError::new(text, position, FilterProblem::TooLong(text.len())));
    }
    let mut lexer = Lexer::new(text);
    let token = lexer.next()?;
    let mut parser = Parser { text, lexer, token, depth: 0, value_count: 0 };
    let node = parser.any()?;
    let condition = parser.condition(node)?;
    match parser.token.kind {
        TokenKind::End => Ok(condition),
        _ => Err(parser.expected("an operator or the end")),
    }
}

struct Parser<'t> {
    text: &'t str,
    lexer: Lexer<'t>,
    /// The next one, which is not used up.
    token: Token,
    depth: usize,
    value_count: usize,
}

/// What a rule has read, and where it begins.
struct Node {
    at: usize,
    content: Content,
}

enum Content {
    Condition(Condition),
    Value(Value),
}

const A_VALUE: &str = "a value, such as price, 'text' or 3";

impl Parser<'_> {
    fn any(&mut self) -> Result<Node, FilterError> {
        let first = self.all()?;
        self.connected(first, Keyword::Or, Self::all, Condition::Any)
    }

    fn all(&mut self) -> Result<Node, FilterError> {
        let first = self.negation()?;
        self.connected(first, Keyword::And, Self::negation, Condition::All)
    }

    /// `first` and what follows, as long as `keyword` stands between.
    fn connected(
        &mut self,
        first: Node,
        keyword: Keyword,
        next: fn(&mut Self) -> Result<Node, FilterError>,
        connect: fn(Vec<Condition>) -> Condition,
    ) -> Result<Node, FilterError> {
        if !self.at_keyword(keyword) {
            return Ok(first);
        }
        let at = first.at;
        let mut conditions = vec![self.condition(first)?];
        while self.at_keyword(keyword) {
            self.advance()?;
            let node = next(self)?;
            conditions.push(self.condition(node)?);
        }
        Ok(Node::condition(at, connect(conditions)))
    }

    fn negation(&mut self) -> Result<Node, FilterError> {
        if !self.at_keyword(Keyword::Not) {
            return self.predicate();
        }
        let at = self.at();
        self.advance()?;
        let node = self.nested(at, Self::negation)?;
        let condition = self.condition(node)?;
        Ok(Node::condition(at, Condition::Not(Box::new(condition))))
    }

    fn sum(&mut self) -> Result<Node, FilterError> {
        let first = self.product()?;
        self.calculated(first, Self::product, |sign| match sign {
            Sign::Plus => Some(Operator::Plus),
            Sign::Minus => Some(Operator::Minus),
            _ => None,
        })
    }

    fn product(&mut self) -> Result<Node, FilterError> {
        let first = self.factor()?;
        self.calculated(first, Self::factor, |sign| match sign {
            Sign::Times => Some(Operator::Times),
            Sign::Divide => Some(Operator::Divide),
            _ => None,
        })
    }

    /// `first` and what follows, as long as one of the operators stands between.
    fn calculated(
        &mut self,
        first: Node,
        next: fn(&mut Self) -> Result<Node, FilterError>,
        operator: fn(Sign) -> Option<Operator>,
    ) -> Result<Node, FilterError> {
        let mut steps = Vec::new();
        while let TokenKind::Sign(sign) = self.token.kind
            && let Some(operator) = operator(sign)
        {
            self.advance()?;
            let node = next(self)?;
            steps.push((operator, self.number(node)?));
        }
        if steps.is_empty() {
            return Ok(first);
        }
        let at = first.at;
        let first = Box::new(self.number(first)?);
        Ok(Node { at, content: Content::Value(Value::Arithmetic(first, steps)) })
    }

    fn factor(&mut self) -> Result<Node, FilterError> {
        let at = self.at();
        self.value_count += 1;
        if self.value_count > FILTER_NODES_MAX {
            return Err(self.error(FilterProblem::TooLarge));
        }
        let value = match &mut self.token.kind {
            TokenKind::Text(text) => Value::Text(std::mem::take(text)),
            TokenKind::Number(number) => Value::Number(*number),
            TokenKind::Keyword(Keyword::True) => Value::Boolean(true),
            TokenKind::Keyword(Keyword::False) => Value::Boolean(false),
            TokenKind::Header(name) => Value::Header(std::mem::take(name)),
            TokenKind::Property(name) => match &**name {
                "key" => Value::Key,
                "priority" => Value::Priority,
                "size" => Value::Size,
                other => {
                    let problem = FilterProblem::Property(shortened(other));
                    return Err(self.error(problem));
                }
            },
            TokenKind::Sign(sign @ (Sign::Minus | Sign::Plus)) => {
                let sign = *sign;
                self.advance()?;
                let node = self.nested(at, Self::factor)?;
                let content = Content::Value(match (sign, self.number(node)?) {
                    (Sign::Minus, Value::Number(number)) => Value::Number(number.negated()),
                    (Sign::Minus, value) => Value::Negated(Box::new(value)),
                    (_, Value::Number(number)) => Value::Number(number),
                    // Nothing is done to it, but it is a number from here on.
                    (_, value) => Value::Arithmetic(Box::new(value), Vec::new()),
                });
                return Ok(Node { at, content });
            }
            TokenKind::Sign(Sign::Open) => {
                self.advance()?;
                let content = self.nested(at, Self::any)?.content;
                if !self.at_sign(Sign::Close) {
                    return Err(self.expected("an operator or )"));
                }
                self.advance()?;
                return Ok(Node { at, content });
            }
            _ => return Err(self.expected(A_VALUE)),
        };
        self.advance()?;
        Ok(Node { at, content: Content::Value(value) })
    }

    /// Reads by `rule` what stands inside the parenthesis, NOT or sign at `at`.
    fn nested(
        &mut self,
        at: usize,
        rule: fn(&mut Self) -> Result<Node, FilterError>,
    ) -> Result<Node, FilterError> {
        if self.depth == FILTER_DEPTH_MAX {
            return Err(self.error_at(at, FilterProblem::TooDeep));
        }
        self.depth += 1;
        let node = rule(self)?;
        self.depth -= 1;
        Ok(node)
    }

    /// `node` as a condition: it is one, or a header or constant that says itself whether it is true.
    fn condition(&self, node: Node) -> Result<Condition, FilterError> {
        match node.content {
            Content::Condition(condition) => Ok(condition),
            Content::Value(value) => match value.kind() {
                Kind::Untyped | Kind::Boolean => Ok(Condition::Flag(value)),
                kind => Err(self.error_at(node.at, FilterProblem::NotACondition(kind.describe()))),
            },
        }
    }

    fn value(&self, node: Node) -> Result<Value, FilterError> {
        match node.content {
            Content::Value(value) => Ok(value),
            Content::Condition(_) => Err(self.error_at(node.at, FilterProblem::NotAValue)),
        }
    }

    /// `node` as a value that is a number, or can be one.
    fn number(&self, node: Node) -> Result<Value, FilterError> {
        let at = node.at;
        let value = self.value(node)?;
        match value.kind() {
            Kind::Number | Kind::Untyped => Ok(value),
            kind => Err(self.error_at(at, FilterProblem::NotANumber(kind.describe()))),
        }
    }

    /// Where the next token begins.
    fn at(&self) -> usize {
        self.token.place.start
    }

    fn at_keyword(&self, keyword: Keyword) -> bool {
        matches!(self.token.kind, TokenKind::Keyword(found) if found == keyword)
    }

    fn at_sign(&self, sign: Sign) -> bool {
        matches!(self.token.kind, TokenKind::Sign(found) if found == sign)
    }

    fn advance(&mut self) -> Result<(), FilterError> {
        self.token = self.lexer.next()?;
        Ok(())
    }

    fn expected(&self, wanted: &'static str) -> FilterError {
        let found = match self.token.kind {
            TokenKind::End => "the end".to_owned(),
            _ => format!("{:?}", shortened(&self.text[self.token.place.clone()])),
        };
        self.error(FilterProblem::Expected { wanted, found })
    }

    fn error(&self, problem: FilterProblem) -> FilterError {
        self.error_at(self.at(), problem)
    }

    fn error_at(&self, at: usize, problem: FilterProblem) -> FilterError {
        FilterError::new(self.text, at, problem)
    }
}

impl Node {
    fn condition(at: usize, condition: Condition) -> Self {
        Self { at, content: Content::Condition(condition) }
    }
}
