//! The words and signs of a filter, one after the other. Knows nothing of their order.

use std::ops::Range;

use super::error::{FilterError, FilterProblem};
use super::number::{Number, number_len};
use crate::model::limits::HEADER_NAME_BYTES_MAX;

/// A word or sign, and where it stands in the text.
#[derive(Debug)]
pub(super) struct Token {
    pub kind: TokenKind,
    /// In bytes.
    pub place: Range<usize>,
}

#[derive(Debug)]
pub(super) enum TokenKind {
    Keyword(Keyword),
    /// A name of a header, bare or from double quotes.
    Header(Box<str>),
    /// The name behind `@`.
    Property(Box<str>),
    /// What stood between single quotes.
    Text(Box<str>),
    Number(Number),
    Sign(Sign),
    End,
}

/// A word that is no name of a header unless it stands in double quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keyword {
    And,
    Between,
    Escape,
    False,
    In,
    Is,
    Like,
    Not,
    Null,
    Or,
    True,
}

const KEYWORDS: [(&str, Keyword); 11] = [
    ("AND", Keyword::And),
    ("BETWEEN", Keyword::Between),
    ("ESCAPE", Keyword::Escape),
    ("FALSE", Keyword::False),
    ("IN", Keyword::In),
    ("IS", Keyword::Is),
    ("LIKE", Keyword::Like),
    ("NOT", Keyword::Not),
    ("NULL", Keyword::Null),
    ("OR", Keyword::Or),
    ("TRUE", Keyword::True),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Plus,
    Minus,
    Times,
    Divide,
    Open,
    Close,
    Comma,
}

/// Signs, and those of other languages with what they are here. Longer ones stand before those they begin with.
const SIGNS: [(&str, Result<Sign, &str>); 18] = [
    ("<>", Ok(Sign::Unequal)),
    ("!=", Ok(Sign::Unequal)),
    ("<=", Ok(Sign::LessOrEqual)),
    (">=", Ok(Sign::GreaterOrEqual)),
    ("==", Err("=")),
    ("&&", Err("AND")),
    ("||", Err("OR")),
    ("!", Err("NOT")),
    ("=", Ok(Sign::Equal)),
    ("<", Ok(Sign::Less)),
    (">", Ok(Sign::Greater)),
    ("+", Ok(Sign::Plus)),
    ("-", Ok(Sign::Minus)),
    ("*", Ok(Sign::Times)),
    ("/", Ok(Sign::Divide)),
    ("(", Ok(Sign::Open)),
    (")", Ok(Sign::Close)),
    (",", Ok(Sign::Comma)),
];

/// A reader over the text of a filter.
pub(super) struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Lexer<'t> {
    pub fn new(text: &'t str) -> Self {
        Self { text, at: 0 }
    }

    /// The next word or sign; [`TokenKind::End`] at the end, as often as it is asked for.
    ///
    /// # Errors
    /// Where no word and no sign begins, or one does not end.
    pub fn next(&mut self) -> Result<Token, FilterError> {
        let rest = self.text[self.at..].trim_start();
        self.at = self.text.len() - rest.len();
        let start = self.at;
        let Some(first) = rest.chars().next() else {
            return Ok(Token { kind: TokenKind::End, place: start..start });
        };
        let (kind, len) = match first {
            '\'' => self.quoted(rest).map(|(text, len)| (TokenKind::Text(text.into()), len))?,
            '"' => {
                let (name, len) = self.quoted(rest)?;
                if name.is_empty() || name.len() > HEADER_NAME_BYTES_MAX {
                    return Err(self.error(FilterProblem::HeaderName(name.len())));
                }
                (TokenKind::Header(name.into()), len)
            }
            '@' if word_len(&rest[1..]) > 0 => {
                let len = 1 + word_len(&rest[1..]);
                (TokenKind::Property(rest[1..len].into()), len)
            }
            _ if number_len(rest) > 0 => self.number(rest)?,
            _ if word_len(rest) > 0 => {
                let word = &rest[..word_len(rest)];
                let keyword = KEYWORDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
                let kind = match keyword {
                    Some((_, keyword)) => TokenKind::Keyword(*keyword),
                    None if word.len() > HEADER_NAME_BYTES_MAX => {
                        return Err(self.error(FilterProblem::HeaderName(word.len())));
                    }
                    None => TokenKind::Header(word.into()),
                };
                (kind, word.len())
            }
            _ => self.sign(rest, first)?,
        };
        self.at += len;
        Ok(Token { kind, place: start..self.at })
    }

    /// What stands between the quotes that `rest` begins with, and the length with them.
    fn quoted(&self, rest: &str) -> Result<(String, usize), FilterError> {
        let quote = &rest[..1];
        let mut content = String::new();
        let mut len = 1;
        loop {
            let piece = rest[len..].find(quote).ok_or_else(|| self.error(FilterProblem::QuoteOpen))?;
            content.push_str(&rest[len..len + piece]);
            len += piece + 1;
            if !rest[len..].starts_with(quote) {
                return Ok((content, len));
            }
            content.push_str(quote);
            len += 1;
        }
    }

    fn number(&self, rest: &str) -> Result<(TokenKind, usize), FilterError> {
        let len = number_len(rest);
        let whole = rest.find(|c: char| !(is_name_character(c) || c == '.')).unwrap_or(rest.len());
        if whole > len {
            return Err(self.error(FilterProblem::Number(shortened(&rest[..whole]))));
        }
        match Number::parse(&rest[..len]) {
            Some(number) => Ok((TokenKind::Number(number), len)),
            None => Err(self.error(FilterProblem::NumberTooLarge(shortened(&rest[..len])))),
        }
    }

    fn sign(&self, rest: &str, first: char) -> Result<(TokenKind, usize), FilterError> {
        match SIGNS.iter().find(|(sign, _)| rest.starts_with(sign)) {
            Some((text, Ok(sign))) => Ok((TokenKind::Sign(*sign), text.len())),
            Some(&(found, Err(instead))) => Err(self.error(FilterProblem::Foreign { found, instead })),
            None => Err(self.error(FilterProblem::Character(first))),
        }
    }

    fn error(&self, problem: FilterProblem) -> FilterError {
        FilterError::new(self.text, self.at, problem)
    }
}

fn is_name_character(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '_' | '$')
}

/// Bytes of the word that `text` begins with: letters, digits, `_` and `$`, not a digit first; between two of them
/// also one `.` or `-`. So `x-tenant` is one word, and `a - b` and `a -1` are not.
fn word_len(text: &str) -> usize {
    let mut len = 0;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let joint =
            matches!(character, '.' | '-') && characters.peek().copied().is_some_and(is_name_character);
        let inside = len > 0 && (joint || is_name_character(character));
        if !(inside || is_name_character(character) && !character.is_numeric()) {
            break;
        }
        len += character.len_utf8();
    }
    len
}

/// The beginning of `text`, for an error.
pub(super) fn shortened(text: &str) -> String {
    const SHOWN: usize = 32;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
