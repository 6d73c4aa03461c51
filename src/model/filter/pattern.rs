//! Patterns of `LIKE`: `%` stands for any characters or none, `_` for exactly one.
//!
//! A pattern is cut at its `%` into runs of fixed length. The first and the last run are compared at the ends of the
//! text, and every other one is searched for once, behind the one before it. So a match takes time in proportion to
//! the text, whatever the pattern.

use super::error::FilterProblem;
use crate::model::limits::FILTER_PATTERN_RUN_MAX;

/// A pattern, ready to be compared.
#[derive(Debug)]
pub(super) struct Pattern {
    first: Run,
    behind: Option<Behind>,
}

/// What follows the first `%`.
#[derive(Debug)]
struct Behind {
    middle: Box<[Search]>,
    last: Run,
}

/// The characters before the first `%` or behind the last one.
#[derive(Debug)]
enum Run {
    /// No `_` is among them.
    Text(Box<str>),
    /// `None` stands for `_`.
    Holed(Box<[Option<char>]>),
}

/// The characters between two `%`.
#[derive(Debug)]
enum Search {
    /// No `_` is among them.
    Text(Box<str>),
    /// For each character a bit where it stands, and where a `_` does.
    Holed { len: u32, masks: Box<[(char, u64)]>, holes: u64 },
}

impl Pattern {
    /// Reads a pattern. Behind `escape`, `%`, `_` and `escape` stand for themselves.
    ///
    /// # Errors
    /// Where `escape` is followed by something else, or a run with `_` is too long to be searched for.
    pub fn parse(text: &str, escape: Option<char>) -> Result<Self, FilterProblem> {
        let mut runs = vec![Vec::new()];
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            let piece = if Some(character) == escape {
                match characters.next() {
                    Some(next) if matches!(next, '%' | '_') || Some(next) == escape => Some(next),
                    _ => return Err(FilterProblem::Escape(character)),
                }
            } else if character == '%' {
                runs.push(Vec::new());
                continue;
            } else {
                (character != '_').then_some(character)
            };
            if let Some(run) = runs.last_mut() {
                run.push(piece);
            }
        }
        let mut runs = runs.into_iter();
        let first = Run::new(runs.next().unwrap_or_default());
        let Some(last) = runs.next_back() else { return Ok(Self { first, behind: None }) };
        let middle = runs.filter(|run| !run.is_empty()).map(Search::new).collect::<Result<_, _>>()?;
        Ok(Self { first, behind: Some(Behind { middle, last: Run::new(last) }) })
    }

    /// Whether the whole of `text` is like the pattern.
    pub fn matches(&self, text: &str) -> bool {
        let Some(rest) = self.first.strip_start(text) else { return false };
        let Some(behind) = &self.behind else { return rest.is_empty() };
        let Some(mut rest) = behind.last.strip_end(rest) else { return false };
        behind.middle.iter().all(|run| run.skip_past(rest).map(|found| rest = found).is_some())
    }
}

impl Run {
    fn new(pieces: Vec<Option<char>>) -> Self {
        match pieces.iter().copied().collect::<Option<String>>() {
            Some(text) => Self::Text(text.into()),
            None => Self::Holed(pieces.into()),
        }
    }

    /// What follows the run where `text` starts with it.
    fn strip_start<'a>(&self, text: &'a str) -> Option<&'a str> {
        match self {
            Self::Text(run) => text.strip_prefix(&**run),
            Self::Holed(pieces) => {
                let mut rest = text.chars();
                let fits = pieces.iter().all(|piece| fits(*piece, rest.next()));
                fits.then_some(rest.as_str())
            }
        }
    }

    /// What precedes the run where `text` ends with it.
    fn strip_end<'a>(&self, text: &'a str) -> Option<&'a str> {
        match self {
            Self::Text(run) => text.strip_suffix(&**run),
            Self::Holed(pieces) => {
                let mut rest = text.chars();
                let fits = pieces.iter().rev().all(|piece| fits(*piece, rest.next_back()));
                fits.then_some(rest.as_str())
            }
        }
    }
}

impl Search {
    fn new(pieces: Vec<Option<char>>) -> Result<Self, FilterProblem> {
        let pieces = match Run::new(pieces) {
            Run::Text(text) => return Ok(Self::Text(text)),
            Run::Holed(pieces) if pieces.len() > FILTER_PATTERN_RUN_MAX => {
                return Err(FilterProblem::PatternRunTooLong);
            }
            Run::Holed(pieces) => pieces,
        };
        let mask = |wanted| {
            let places = pieces.iter().enumerate().filter(|&(_, &piece)| piece == wanted);
            places.fold(0, |mask, (at, _)| mask | 1 << at)
        };
        let mut characters: Vec<char> = pieces.iter().copied().flatten().collect();
        characters.sort_unstable();
        characters.dedup();
        let masks = characters.into_iter().map(|character| (character, mask(Some(character)))).collect();
        Ok(Self::Holed { len: pieces.len() as u32, masks, holes: mask(None) })
    }

    /// What follows the first place of `text` where the run stands.
    fn skip_past<'a>(&self, text: &'a str) -> Option<&'a str> {
        let (len, masks, holes) = match self {
            Self::Text(run) => return text.split_once(&**run).map(|(_, rest)| rest),
            Self::Holed { len, masks, holes } => (len, masks, holes),
        };
        // Bit n is set where the last n + 1 characters are the first of the run (Shift-And).
        let mut begun = 0_u64;
        let mut rest = text.chars();
        while let Some(character) = rest.next() {
            let found = masks.binary_search_by_key(&character, |(character, _)| *character);
            begun = (begun << 1 | 1) & (found.map_or(0, |at| masks[at].1) | holes);
            if begun >> (len - 1) & 1 == 1 {
                return Some(rest.as_str());
            }
        }
        None
    }
}

fn fits(piece: Option<char>, character: Option<char>) -> bool {
    character.is_some() && (piece.is_none() || piece == character)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn like(text: &str, pattern: &str) -> bool {
        Pattern::parse(pattern, None).unwrap().matches(text)
    }

    #[test]
    fn patterns_match_whole_texts_by_characters() {
        for (text, pattern, expected) in [
            ("", "", true),
            ("", "%", true),
            ("", "_", false),
            ("a", "_", true),
            ("ö", "_", true),
            ("öl", "_", false),
            ("\u{1f980}x", "_x", true),
            ("abc", "abc", true),
            ("abcd", "abc", false),
            ("abc", "ABC", false),
            ("aXXXb1", "a%b_", true),
            ("ab", "a%b_", false),
            ("aba", "ab%ba", false),
            ("abba", "ab%ba", true),
            ("xxabyyacz", "%a_%a_z", true),
            ("xaby", "%a%%b%", true),
            ("xbay", "%a%b%", false),
            ("äxöyü", "%x_y%", true),
            ("aaab", "%a_b%", true),
            ("anything", "%%", true),
        ] {
            assert_eq!(like(text, pattern), expected, "{text:?} LIKE {pattern:?}");
        }
    }

    #[test]
    fn an_escaped_character_stands_for_itself() {
        let escaped = Pattern::parse("100!%_!_!!%", Some('!')).unwrap();
        assert!(escaped.matches("100%x_!abc"));
        assert!(!escaped.matches("100xx_!abc"));
        for pattern in ["a!b", "!", "a!"] {
            assert_eq!(Pattern::parse(pattern, Some('!')).unwrap_err(), FilterProblem::Escape('!'));
        }
    }

    #[test]
    fn a_run_with_holes_has_a_bit_for_each_character() {
        let run = |len| format!("%{}_%", "a".repeat(len - 1));
        let longest = Pattern::parse(&run(FILTER_PATTERN_RUN_MAX), None).unwrap();
        assert!(longest.matches(&"a".repeat(FILTER_PATTERN_RUN_MAX)));
        assert!(!longest.matches(&"a".repeat(FILTER_PATTERN_RUN_MAX - 1)));
        let longer = Pattern::parse(&run(FILTER_PATTERN_RUN_MAX + 1), None);
        assert_eq!(longer.unwrap_err(), FilterProblem::PatternRunTooLong);
        // At the ends of the text, or without holes, nothing is searched for by bits.
        let long = "a".repeat(500);
        for pattern in [format!("{long}_%"), format!("%{long}_"), format!("%{long}%")] {
            assert!(like(&format!("{long}b{long}b"), &pattern), "{pattern}");
        }
    }

    /// Tries everything; exponential, and obviously right.
    fn naive(text: &[char], pattern: &[char]) -> bool {
        match pattern {
            [] => text.is_empty(),
            ['%', rest @ ..] => (0..=text.len()).any(|skipped| naive(&text[skipped..], rest)),
            [piece, rest @ ..] => {
                text.first().is_some_and(|c| *piece == '_' || piece == c) && naive(&text[1..], rest)
            }
        }
    }

    proptest! {
        #[test]
        fn patterns_match_as_the_naive_ones(text in "[abö]{0,12}", pattern in "[abö_%]{0,8}") {
            let characters = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(like(&text, &pattern), naive(&characters(&text), &characters(&pattern)));
        }
    }
}
