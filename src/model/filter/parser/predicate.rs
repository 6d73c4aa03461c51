//! What a filter asks about a value: comparisons, IN, LIKE, BETWEEN, IS NULL.
//!
//! Refuses what no message can make true: a number compared with a text, for example.

use super::super::condition::{Comparison, Condition, Kind, List, Value};
use super::super::error::{FilterError, FilterProblem};
use super::super::lexer::{Keyword, Sign, TokenKind};
use super::super::pattern::Pattern;
use super::{Node, Parser};
use crate::model::limits::FILTER_LIST_MAX;

impl Parser<'_> {
    /// A sum, and what is asked about it.
    pub(super) fn predicate(&mut self) -> Result<Node, FilterError> {
        let node = self.sum()?;
        let at = node.at;
        if let TokenKind::Sign(sign) = self.token.kind
            && let Some(comparison) = comparison(sign)
        {
            return self.comparison(node, comparison);
        }
        let (negated, keyword) = match self.token.kind {
            TokenKind::Keyword(Keyword::Not) => {
                self.advance()?;
                match self.token.kind {
                    TokenKind::Keyword(keyword @ (Keyword::In | Keyword::Like | Keyword::Between)) => {
                        (true, keyword)
                    }
                    _ => return Err(self.expected("IN, LIKE or BETWEEN after NOT")),
                }
            }
            TokenKind::Keyword(keyword) => (false, keyword),
            _ => return Ok(node),
        };
        let (negated, condition) = match keyword {
            Keyword::In => (negated, self.in_list(node)?),
            Keyword::Like => (negated, self.like(node)?),
            Keyword::Between => (negated, self.between(node)?),
            Keyword::Is => self.is_null(node)?,
            _ => return Ok(node),
        };
        Ok(Node::condition(at, if negated { Condition::Not(Box::new(condition)) } else { condition }))
    }

    fn comparison(&mut self, left: Node, comparison: Comparison) -> Result<Node, FilterError> {
        let (at, sign_at) = (left.at, self.at());
        let left = self.value(left)?;
        self.advance()?;
        if self.at_keyword(Keyword::Null) {
            return Err(self.error(FilterProblem::Foreign {
                found: "NULL",
                instead: "IS NULL or IS NOT NULL without = or <>",
            }));
        }
        let right = self.sum()?;
        let right = self.comparable(&left, right)?;
        let ordered = !matches!(comparison, Comparison::Equal | Comparison::Unequal);
        if ordered && [left.kind(), right.kind()].contains(&Kind::Boolean) {
            return Err(self.error_at(sign_at, FilterProblem::Unordered));
        }
        Ok(Node::condition(at, Condition::Compare(left, comparison, right)))
    }

    fn between(&mut self, node: Node) -> Result<Condition, FilterError> {
        let at = node.at;
        let value = self.value(node)?;
        self.advance()?;
        let low = self.sum()?;
        let low = self.comparable(&value, low)?;
        if !self.at_keyword(Keyword::And) {
            return Err(self.expected("AND and the highest value of BETWEEN"));
        }
        self.advance()?;
        let high = self.sum()?;
        let high = self.comparable(&value, high)?;
        if [value.kind(), low.kind(), high.kind()].contains(&Kind::Boolean) {
            return Err(self.error_at(at, FilterProblem::Unordered));
        }
        Ok(Condition::Between { value, low, high })
    }

    fn in_list(&mut self, node: Node) -> Result<Condition, FilterError> {
        let value = self.value(node)?;
        self.advance()?;
        if !self.at_sign(Sign::Open) {
            return Err(self.expected("a list, as in IN ('a', 'b', 3)"));
        }
        let mut list = List::default();
        loop {
            // What stands before the element: first the parenthesis, then commas.
            self.advance()?;
            if list.len() == FILTER_LIST_MAX {
                return Err(self.error(FilterProblem::ListTooLong));
            }
            self.element(value.kind(), &mut list)?;
            match self.token.kind {
                TokenKind::Sign(Sign::Comma) => {}
                TokenKind::Sign(Sign::Close) => break,
                _ => return Err(self.expected("a comma or ) in the list")),
            }
        }
        self.advance()?;
        Ok(Condition::In(value, list.sorted()))
    }

    /// One value of a list that is compared with a value of `kind`. Elements are constants: they can be sorted.
    fn element(&mut self, kind: Kind, list: &mut List) -> Result<(), FilterError> {
        let at = self.at();
        let negative = self.at_sign(Sign::Minus);
        let signed = negative || self.at_sign(Sign::Plus);
        if signed {
            self.advance()?;
        }
        match &mut self.token.kind {
            TokenKind::Text(text) if !signed => {
                list.texts.push(std::mem::take(text));
                self.check_comparable(kind, Kind::Text, at)?;
            }
            TokenKind::Number(number) => {
                list.numbers.push(if negative { number.negated() } else { *number });
                self.check_comparable(kind, Kind::Number, at)?;
            }
            _ => return Err(self.expected("a text or a number, such as 'a' or 3")),
        }
        self.advance()
    }

    fn like(&mut self, node: Node) -> Result<Condition, FilterError> {
        let at = node.at;
        let value = self.value(node)?;
        if !matches!(value.kind(), Kind::Untyped | Kind::Text) {
            return Err(self.error_at(at, FilterProblem::NotAText(value.kind().describe())));
        }
        self.advance()?;
        let pattern_at = self.at();
        let TokenKind::Text(pattern) = &mut self.token.kind else {
            return Err(self.expected("a pattern in single quotes, as in LIKE 'a%'"));
        };
        let pattern = std::mem::take(pattern);
        self.advance()?;
        let mut escape = None;
        if self.at_keyword(Keyword::Escape) {
            self.advance()?;
            let TokenKind::Text(text) = &self.token.kind else {
                return Err(self.error(FilterProblem::EscapeLength));
            };
            let mut characters = text.chars();
            escape = characters.next();
            if escape.is_none() || characters.next().is_some() {
                return Err(self.error(FilterProblem::EscapeLength));
            }
            self.advance()?;
        }
        let pattern =
            Pattern::parse(&pattern, escape).map_err(|problem| self.error_at(pattern_at, problem))?;
        Ok(Condition::Like(value, pattern))
    }

    /// The condition of IS NULL, and whether NOT stands in it.
    fn is_null(&mut self, node: Node) -> Result<(bool, Condition), FilterError> {
        let at = node.at;
        let value = self.value(node)?;
        if value.kind() != Kind::Untyped {
            return Err(self.error_at(at, FilterProblem::NeverNull));
        }
        self.advance()?;
        let negated = self.at_keyword(Keyword::Not);
        if negated {
            self.advance()?;
        }
        if !self.at_keyword(Keyword::Null) {
            return Err(self.expected("NULL or NOT NULL"));
        }
        self.advance()?;
        Ok((negated, Condition::IsNull(value)))
    }

    /// `node` as a value that can be compared with `left`.
    fn comparable(&self, left: &Value, node: Node) -> Result<Value, FilterError> {
        let at = node.at;
        let right = self.value(node)?;
        self.check_comparable(left.kind(), right.kind(), at)?;
        Ok(right)
    }

    /// Refuses `right`, which stands at `at`, where no message makes it comparable with `left`.
    fn check_comparable(&self, left: Kind, right: Kind, at: usize) -> Result<(), FilterError> {
        if left == right || [left, right].contains(&Kind::Untyped) {
            return Ok(());
        }
        let [left, right] = [left, right].map(Kind::describe);
        Err(self.error_at(at, FilterProblem::Incomparable { left, right }))
    }
}

fn comparison(sign: Sign) -> Option<Comparison> {
    Some(match sign {
        Sign::Equal => Comparison::Equal,
        Sign::Unequal => Comparison::Unequal,
        Sign::Less => Comparison::Less,
        Sign::LessOrEqual => Comparison::LessOrEqual,
        Sign::Greater => Comparison::Greater,
        Sign::GreaterOrEqual => Comparison::GreaterOrEqual,
        _ => return None,
    })
}
