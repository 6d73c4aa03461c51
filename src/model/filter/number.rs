//! Numbers of filters: whole ones to 38 digits, exact, and decimal ones as `f64`, always finite.
//!
//! Any two are compared exactly, whole with decimal ones too. What has no result, because it is too large or a
//! division by zero, is `None`, and so UNKNOWN in a filter.

use std::cmp::Ordering;

/// A number. Those from outside this file are as [`Number::whole`] and [`Number::decimal`] let them be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    /// Wide enough for every identifier of 64 bits, with or without sign. Not the lowest, which has no negative.
    Whole(i128),
    /// Finite.
    Decimal(f64),
}

/// An operator between two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Plus,
    Minus,
    Times,
    Divide,
}

impl Number {
    /// Reads a text that is a number from its first byte to its last, with or without a sign.
    pub fn parse(text: &str) -> Option<Self> {
        let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
        if unsigned.is_empty() || number_len(unsigned) != unsigned.len() {
            return None;
        }
        if unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().ok().and_then(Self::whole);
        }
        text.parse().ok().and_then(Self::decimal)
    }

    /// A whole number, where it has a negative.
    fn whole(value: i128) -> Option<Self> {
        (value != i128::MIN).then_some(Self::Whole(value))
    }

    /// A decimal number, where `value` is one.
    fn decimal(value: f64) -> Option<Self> {
        value.is_finite().then_some(Self::Decimal(value))
    }

    /// The number with the other sign.
    pub fn negated(self) -> Self {
        match self {
            Self::Whole(whole) => Self::Whole(-whole),
            Self::Decimal(decimal) => Self::Decimal(-decimal),
        }
    }

    /// The result of `self operator right`. Of two whole numbers it is whole, but for a division that leaves a rest.
    pub fn calculate(self, operator: Operator, right: Self) -> Option<Self> {
        if let (Self::Whole(left), Self::Whole(right)) = (self, right) {
            let whole = match operator {
                Operator::Plus => left.checked_add(right),
                Operator::Minus => left.checked_sub(right),
                Operator::Times => left.checked_mul(right),
                Operator::Divide if left.checked_rem(right)? == 0 => left.checked_div(right),
                Operator::Divide => return Self::decimal(left as f64 / right as f64),
            };
            return whole.and_then(Self::whole);
        }
        let (left, right) = (self.to_f64(), right.to_f64());
        Self::decimal(match operator {
            Operator::Plus => left + right,
            Operator::Minus => left - right,
            Operator::Times => left * right,
            Operator::Divide => left / right,
        })
    }

    fn to_f64(self) -> f64 {
        match self {
            Self::Whole(whole) => whole as f64,
            Self::Decimal(decimal) => decimal,
        }
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Number {}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        match (*self, *other) {
            (Self::Whole(left), Self::Whole(right)) => left.cmp(&right),
            (Self::Whole(left), Self::Decimal(right)) => compare_mixed(left, right),
            (Self::Decimal(left), Self::Whole(right)) => compare_mixed(right, left).reverse(),
            // Finite, so one of the two is true where they differ.
            (Self::Decimal(left), Self::Decimal(right)) => (left > right).cmp(&(left < right)),
        }
    }
}

/// Compares without rounding `whole`, which may have more digits than an `f64`.
fn compare_mixed(whole: i128, decimal: f64) -> Ordering {
    let floor = decimal.floor();
    // -2^127 is the lowest i128, and 2^127 one more than the highest.
    if floor >= -(i128::MIN as f64) {
        return Ordering::Less;
    }
    if floor < i128::MIN as f64 {
        return Ordering::Greater;
    }
    whole.cmp(&(floor as i128)).then(if decimal > floor { Ordering::Less } else { Ordering::Equal })
}

/// Bytes of the number without sign that `text` begins with: `7`, `7.25`, `.5`, `7.`, `7e3`, `7.2E-3`; 0 for none.
pub(super) fn number_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut len = digits(0);
    let mut digit_count = len;
    if bytes.get(len) == Some(&b'.') {
        let fraction = digits(len + 1);
        digit_count += fraction;
        len += 1 + fraction;
    }
    if digit_count == 0 {
        return 0;
    }
    if matches!(bytes.get(len), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(len + 1), Some(b'-' | b'+')));
        let exponent = digits(len + 1 + sign.min(bytes.len() - len - 1));
        if exponent > 0 {
            len += 1 + sign + exponent;
        }
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_numbers_from_end_to_end_or_not_at_all() {
        for text in [
            "0",
            "-7",
            "+7",
            "007",
            "1.5",
            ".5",
            "7.",
            "1e3",
            "-1.5E-3",
            "170141183460469231731687303715884105727",
        ] {
            assert!(Number::parse(text).is_some(), "{text}");
        }
        for text in [
            "",
            "-",
            "+",
            ".",
            "e3",
            "1e",
            "1e+",
            "1 ",
            " 1",
            "--1",
            "+-1",
            "1.2.3",
            "0x10",
            "inf",
            "nan",
            "infinity",
            "1_000",
            "1,5",
            "1e999",
            "170141183460469231731687303715884105728",
            "-170141183460469231731687303715884105728",
            "१",
        ] {
            assert_eq!(Number::parse(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_are_compared_without_rounding() {
        let number = |text| Number::parse(text).unwrap();
        let ascending = [
            "-1e300",
            "-1.7014118346046923e38",
            "-170141183460469231731687303715884105727",
            "-1e10",
            "-1.5",
            "-1",
            "-0.5",
            "0",
            "0.25",
            "1",
            "9007199254740992",
            "9007199254740993",
            "9007199254740994.0",
            "18446744073709551614",
            "18446744073709551615",
            "1.8446744073709552e19",
            "170141183460469231731687303715884105727",
            "1.7014118346046923e38",
            "1e300",
        ];
        for (left_at, left) in ascending.iter().enumerate() {
            for (right_at, right) in ascending.iter().enumerate() {
                assert_eq!(number(left).cmp(&number(right)), left_at.cmp(&right_at), "{left} {right}");
            }
        }
        for (left, right) in [("-0.0", "0"), ("0.0", "-0.0"), ("1.0", "1"), ("1e3", "1000"), ("+5", "005")] {
            assert_eq!(number(left), number(right), "{left} {right}");
        }
    }

    #[test]
    fn what_cannot_be_calculated_has_no_result() {
        let number = |text| Number::parse(text).unwrap();
        let highest = "170141183460469231731687303715884105727";
        let lowest = "-170141183460469231731687303715884105727";
        use Operator::{Divide, Minus, Plus, Times};
        for (left, operator, right, result) in [
            ("1", Plus, "2", Some("3")),
            ("1", Minus, "2.5", Some("-1.5")),
            ("3", Times, "-4", Some("-12")),
            ("8", Divide, "2", Some("4")),
            ("7", Divide, "2", Some("3.5")),
            ("-7", Divide, "2", Some("-3.5")),
            ("1", Divide, "0", None),
            ("0", Divide, "0", None),
            ("1.0", Divide, "0.0", None),
            ("0.0", Divide, "0", None),
            ("1e308", Times, "10", None),
            (highest, Plus, "1", None),
            (lowest, Minus, "1", None),
            (lowest, Plus, "-2", None),
            (highest, Times, "2", None),
            (lowest, Divide, "-1", Some(highest)),
        ] {
            let calculated = number(left).calculate(operator, number(right));
            assert_eq!(calculated, result.map(number), "{left} {operator:?} {right}");
        }
        assert_eq!(number(lowest).negated(), number(highest));
        assert_eq!(number("2.5").negated(), number("-2.5"));
    }
}
