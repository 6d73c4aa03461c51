//! The language of filters, as `docs/filters.md` has it: what matches, what is refused and where, and a naive
//! evaluator of random conditions that must agree.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod naive;

use batonmq::model::filter::{Filter, FilterProblem};
use batonmq::model::limits::{
    FILTER_BYTES_MAX, FILTER_DEPTH_MAX, FILTER_LIST_MAX, FILTER_NODES_MAX, FILTER_PATTERN_RUN_MAX,
    HEADER_NAME_BYTES_MAX,
};
use batonmq::model::message::{Message, MessageBlock, Parts};
use proptest::prelude::*;

/// The message of the tables below.
fn order() -> Message {
    let headers = [
        ("color", "red"),
        ("color", "blue"),
        ("x-tenant", "acme"),
        ("baton.dead.topic", "orders"),
        ("price", "12.50"),
        ("count", "7"),
        ("negative", "-3"),
        ("order", "9007199254740993"),
        ("other_order", "9007199254740992"),
        ("zero", "0"),
        ("padded", "007"),
        ("urgent", "true"),
        ("shipped", "False"),
        ("empty", ""),
        ("name", "O'Brien"),
        ("say \"hi\"", "yes"),
        ("not", "keyword"),
        ("städte", "Köln"),
        ("rate", "100%"),
        ("x-1", "dashed"),
        ("x", "10"),
        ("@key", "a header"),
    ];
    let mut headers: Vec<_> =
        headers.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec().into())).into();
    headers.push(("binary".to_owned(), vec![0xff, 0xfe].into()));
    Message {
        key: Some("k-42".into()),
        headers,
        priority: 4,
        body: vec![7; 2000].into(),
        ..Message::default()
    }
}

/// TRUE, FALSE or UNKNOWN, by what a filter and its opposite say.
fn truth(condition: &str, message: &Message) -> Option<bool> {
    let block = MessageBlock::encode([message]);
    let encoded = block.iter().next().unwrap();
    let parts = Parts::read(&encoded, 0).unwrap();
    let matches = |text: &str| {
        let filter = Filter::parse(text).unwrap_or_else(|error| panic!("{}", error.picture()));
        filter.matches(&parts)
    };
    match (matches(condition), matches(&format!("NOT ({condition})"))) {
        (true, false) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
        (true, true) => panic!("{condition} and its opposite"),
    }
}

fn check(message: &Message, expected: Option<bool>, conditions: &[&str]) {
    for condition in conditions {
        assert_eq!(truth(condition, message), expected, "{condition}");
    }
}

#[test]
fn what_holds_for_a_message_is_true() {
    check(
        &order(),
        Some(true),
        &[
            "color = 'red'",
            "color <> 'blue'",
            "color != 'blue'",
            "COLOR IS NULL",
            "'red' = color",
            "color > 'blue' AND color < 'rod'",
            "x-tenant = 'acme'",
            "\"x-tenant\" = 'acme'",
            "baton.dead.topic = 'orders'",
            "städte = 'Köln'",
            "\"say \"\"hi\"\"\" = 'yes'",
            "\"not\" = 'keyword'",
            "name = 'O''Brien'",
            "empty = ''",
            // Numbers.
            "price = 12.5",
            "price = 1.25e1",
            "price >= 12.5 and price <= 12.5",
            "price < 100",
            "count = 7.0",
            "count = 007",
            "padded = 7",
            "padded <> '7'",
            "padded = count",
            "negative = -3 AND negative < - 2 AND -negative = 3 AND - -negative = +negative",
            "order = 9007199254740993",
            "order <> other_order",
            "order > other_order",
            "order > 9007199254740992.0",
            "count < 18446744073709551615",
            ".5 < 1. AND +1 = 1",
            // Arithmetic.
            "count + 1 = 8",
            "count - 1 = 6 AND count -1 = 6",
            "count * 2 + 1 = 15 AND 1 + count * 2 = 15 AND (count + 1) * 2 = 16",
            "count / 2 = 3.5 AND 8 / 4 = 2",
            "10 - 2 - 3 = 5 AND 16 / 4 / 2 = 2",
            "price * count = 87.5",
            "order + 1 = 9007199254740994",
            // A dash between letters belongs to the name, one with a space does not.
            "x-1 = 'dashed'",
            "x - 1 = 9",
            // Lists.
            "color IN ('blue', 'red')",
            "count IN (1, 7)",
            "count in ('x', -1, +7.0)",
            "color NOT IN ('blue', 'green')",
            "negative IN (-3)",
            "color IN ('red', 'green', 'blue', 'amber') AND count IN (7, 5, 3, 1, -1)",
            // Patterns.
            "color LIKE 'r%'",
            "color LIKE '_e_'",
            "städte LIKE 'K_ln'",
            "color NOT LIKE 'r'",
            "rate LIKE '%!%' ESCAPE '!'",
            "rate LIKE '100\\%' ESCAPE '\\'",
            "count LIKE '7'",
            "name LIKE 'O''%'",
            // Ranges.
            "price BETWEEN 12 AND 13 AND count BETWEEN 7 AND 7",
            "price NOT BETWEEN 13 AND 20",
            "color BETWEEN 'red' AND 'red'",
            "5 BETWEEN zero AND count",
            // What is missing.
            "nothing IS NULL",
            "color IS NOT NULL AND binary IS NOT NULL AND empty IS NOT NULL",
            // Properties.
            "@key = 'k-42'",
            "@key LIKE 'k-%' AND @key IS NOT NULL",
            "\"@key\" = 'a header'",
            "@priority >= 4 AND @size = 2000 AND @size / 1000 = @priority / 2",
            // Conditions by themselves.
            "urgent",
            "urgent AND NOT shipped",
            "urgent = TRUE AND shipped = false AND TRUE <> shipped",
            "TRUE",
            "(((urgent)))",
            // AND binds closer than OR, and NOT closer than both.
            "TRUE OR FALSE AND FALSE",
            "NOT FALSE AND TRUE",
            "NOT color = 'blue'",
            "color = 'blue' OR\n\tcolor = 'red'",
        ],
    );
}

#[test]
fn what_does_not_hold_for_a_message_is_false() {
    check(
        &order(),
        Some(false),
        &[
            "color = 'blue'",
            "color = 'RED'",
            "order = 9007199254740992",
            "order = other_order",
            "price > 12.5",
            "color IN ('blue')",
            "count IN (1, 2)",
            "color LIKE 'R%'",
            "color LIKE ''",
            "price BETWEEN 13 AND 12",
            // Texts of numbers are texts where they are compared with one.
            "count = '7.0'",
            "price = '12.5'",
            "color IS NULL",
            "binary IS NULL",
            "@key IS NULL",
            "shipped",
            "(TRUE OR FALSE) AND FALSE",
            "urgent AND @priority > 4",
            "color = x-tenant",
        ],
    );
}

#[test]
fn what_cannot_be_known_is_unknown() {
    check(
        &order(),
        None,
        &[
            "nothing = 'a'",
            "nothing <> 'a'",
            "nothing = nothing",
            "nothing = nowhere",
            "NOT nothing = 1",
            "nothing IN ('a')",
            "nothing NOT IN ('a')",
            "nothing LIKE '%'",
            "nothing BETWEEN 1 AND 2",
            "nothing",
            // No number, no switch, no text.
            "color > 3",
            "color + 1 = 2",
            "-color = 1",
            "+color = 1",
            "empty = 0",
            "color",
            "color = TRUE",
            "count = TRUE",
            "binary = 'a'",
            "binary LIKE '%'",
            "binary IN ('a', 1)",
            // It may or may not be the number of the list.
            "color IN ('blue', 3)",
            "color NOT IN ('blue', 3)",
            // No result.
            "count / zero = 1",
            "1 / 0 = 1",
            "1.5 / 0.0 = 1",
            "1e308 * 10 > 0",
            "170141183460469231731687303715884105727 + 1 > 0",
            "price BETWEEN nothing AND 20",
            "price BETWEEN 10 AND nothing",
        ],
    );
    let bare = Message::new("");
    check(&bare, None, &["@key = ''", "@key LIKE '%'"]);
    check(&bare, Some(true), &["@key IS NULL", "@priority = 0", "@size = 0", "color IS NULL"]);
}

#[test]
fn half_a_range_can_decide() {
    check(&order(), Some(false), &["price BETWEEN nothing AND 10", "price BETWEEN 20 AND nothing"]);
}

/// The tables of SQL-92, 8.12.
#[test]
fn truth_has_three_values() {
    let message = order();
    let values = [("TRUE", Some(true)), ("FALSE", Some(false)), ("nothing", None)];
    for (left, left_truth) in values {
        assert_eq!(truth(&format!("NOT {left}"), &message), left_truth.map(|truth| !truth), "NOT {left}");
        for (right, right_truth) in values {
            let and = match (left_truth, right_truth) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            };
            let or = match (left_truth, right_truth) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            };
            assert_eq!(truth(&format!("{left} AND {right}"), &message), and, "{left} AND {right}");
            assert_eq!(truth(&format!("{left} OR {right}"), &message), or, "{left} OR {right}");
        }
    }
}

#[test]
fn errors_point_at_the_place_and_say_what_would_be_right() {
    for picture in [
        "\n^ expected a value, such as price, 'text' or 3, found the end",
        "orders > = 3\n         ^ expected a value, such as price, 'text' or 3, found \"=\"",
        "color =\n       ^ expected a value, such as price, 'text' or 3, found the end",
        "größe = = 3\n        ^ expected a value, such as price, 'text' or 3, found \"=\"",
        "(a = 1\n      ^ expected an operator or ), found the end",
        "a = 1)\n     ^ expected an operator or the end, found \")\"",
        "a b\n  ^ expected an operator or the end, found \"b\"",
        "a NOT = 1\n      ^ expected IN, LIKE or BETWEEN after NOT, found \"=\"",
        "a IN 'x'\n     ^ expected a list, as in IN ('a', 'b', 3), found \"'x'\"",
        "a IN ()\n      ^ expected a text or a number, such as 'a' or 3, found \")\"",
        "a IN (-'x')\n       ^ expected a text or a number, such as 'a' or 3, found \"'x'\"",
        "a IN (b)\n      ^ expected a text or a number, such as 'a' or 3, found \"b\"",
        "a IN (1 2)\n        ^ expected a comma or ) in the list, found \"2\"",
        "a LIKE b\n       ^ expected a pattern in single quotes, as in LIKE 'a%', found \"b\"",
        "a BETWEEN 1 OR 2\n            ^ expected AND and the highest value of BETWEEN, found \"OR\"",
        "a IS 3\n     ^ expected NULL or NOT NULL, found \"3\"",
        "a == 1\n  ^ == is not known here, write =",
        "a && b\n  ^ && is not known here, write AND",
        "a || b\n  ^ || is not known here, write OR",
        "!a\n^ ! is not known here, write NOT",
        "a = NULL\n    ^ NULL is not known here, write IS NULL or IS NOT NULL without = or <>",
        "a = `b`\n    ^ character '`' can stand only in quotes: 'text' or \"header name\"",
        "a = @\n    ^ character '@' can stand only in quotes: 'text' or \"header name\"",
        "a = 'its\n    ^ the quote that opens here is not closed; a quote in a text is written twice, as in 'it''s'",
        "\"a = 1\n^ the quote that opens here is not closed; a quote in a text is written twice, as in 'it''s'",
        "\"\" = 1\n^ a header name has 1 to 255 bytes, this one has 0",
        "@topic = 'a'\n^ @topic is not known: there are @key, @priority and @size; a header of this name is written \"@topic\"",
        "a = 7th\n    ^ \"7th\" is not a number; a text is written 'text', a header whose name begins with a digit \"7th\"",
        "a = 1.2.3\n    ^ \"1.2.3\" is not a number; a text is written 'text', a header whose name begins with a digit \"7th\"",
        "a = 1e999\n    ^ number 1e999 is too large; whole numbers have at most 38 digits, decimal ones are below 1.8e308",
        "@size > '3'\n        ^ a text cannot be compared with a number; numbers stand without quotes, texts in single quotes",
        "+a = '3'\n     ^ a text cannot be compared with a number; numbers stand without quotes, texts in single quotes",
        "@size IN (1, '3')\n             ^ a text cannot be compared with a number; numbers stand without quotes, texts in single quotes",
        "a + 1 BETWEEN 2 AND 'b'\n                    ^ a text cannot be compared with a number; numbers stand without quotes, texts in single quotes",
        "a > TRUE\n  ^ TRUE and FALSE have no order; compare them with = or <>",
        "a BETWEEN FALSE AND TRUE\n^ TRUE and FALSE have no order; compare them with = or <>",
        "color = 'red' OR 'blue'\n                 ^ a text is no condition; write a comparison, as in color = 'blue'",
        "a + 1\n^ a number is no condition; write a comparison, as in color = 'blue'",
        "a = 1 = b\n      ^ expected an operator or the end, found \"=\"",
        "(a = 1) = b\n^ a condition is no value; connect conditions with AND and OR",
        "1 + (NOT a) > 3\n    ^ a condition is no value; connect conditions with AND and OR",
        "a + 'b' = 1\n    ^ a text is no number; calculate with headers and numbers",
        "-TRUE = 1\n ^ TRUE or FALSE is no number; calculate with headers and numbers",
        "@size LIKE '1%'\n^ a number is no text; use LIKE with a header or @key",
        "@size IS NULL\n^ only a header or @key can be missing; write IS NULL behind its name",
        "a LIKE 'b' ESCAPE '!!'\n                  ^ ESCAPE takes one character in quotes, as in ESCAPE '!'",
        "a LIKE 'b!c' ESCAPE '!'\n       ^ in this pattern '!' must be followed by %, _ or itself",
    ] {
        let text = picture.split('\n').next().unwrap();
        let error = Filter::parse(text).expect_err(text);
        assert_eq!(error.picture(), picture);
        let (column, problem) = (error.column(), error.problem());
        assert_eq!(error.to_string(), format!("column {column}: {problem}"));
        assert_eq!(text[..error.position()].chars().count() + 1, column);
        assert!(problem.to_string().len() < 200, "{problem}");
    }
}

#[test]
fn a_picture_of_a_long_filter_shows_the_place() {
    let before = "a = 1 OR ".repeat(20);
    let error = Filter::parse(&format!("{before}b == \n2{before}")).unwrap_err();
    assert_eq!(error.column(), before.len() + 3);
    let shown = format!("...{}b ==  2{}...", &before[before.len() - 46..], &before[..19]);
    let below = format!("{}^ == is not known here, write =", " ".repeat(51));
    assert_eq!(error.picture(), format!("{shown}\n{below}"));
}

#[test]
fn a_filter_keeps_to_its_limits() {
    let nested = |depth| format!("{}a{}", "(".repeat(depth), ")".repeat(depth));
    let denied = |depth| format!("{}a", "NOT ".repeat(depth));
    let signed = |depth| format!("{}a = 1", "- ".repeat(depth));
    let connected = |count| vec!["a"; count].join(" OR ");
    let sum = |count: usize| format!("{} = 1", vec!["a"; count - 1].join("+"));
    let list = |count| format!("a IN ({})", vec!["1"; count].join(","));
    let run = |len| format!("a LIKE '%_{}%'", "x".repeat(len - 1));
    let name = |len| format!("\"{0}\" = 1 OR {0} = 1", "x".repeat(len));
    let long = |len| format!("a = '{}'", "x".repeat(len - 6));
    type Limit<'a> = (&'a dyn Fn(usize) -> String, usize, FilterProblem);
    let limits: [Limit<'_>; 9] = [
        (&nested, FILTER_DEPTH_MAX, FilterProblem::TooDeep),
        (&denied, FILTER_DEPTH_MAX, FilterProblem::TooDeep),
        (&signed, FILTER_DEPTH_MAX, FilterProblem::TooDeep),
        (&connected, FILTER_NODES_MAX, FilterProblem::TooLarge),
        (&sum, FILTER_NODES_MAX, FilterProblem::TooLarge),
        (&list, FILTER_LIST_MAX, FilterProblem::ListTooLong),
        (&run, FILTER_PATTERN_RUN_MAX, FilterProblem::PatternRunTooLong),
        (&name, HEADER_NAME_BYTES_MAX, FilterProblem::HeaderName(HEADER_NAME_BYTES_MAX + 1)),
        (&long, FILTER_BYTES_MAX, FilterProblem::TooLong(FILTER_BYTES_MAX + 1)),
    ];
    for (text, max, problem) in limits {
        let longest = Filter::parse(&text(max)).unwrap_or_else(|error| panic!("{}", error.picture()));
        assert_eq!(longest.as_str(), text(max));
        assert_eq!(Filter::parse(&text(max + 1)).unwrap_err().problem(), &problem);
    }
    // What has no limit of its own is held by that of the text.
    for text in ["(", "NOT ", "-", "a+", "a OR ", "a IN (", "'", "\"", "%", "a NOT BETWEEN "] {
        assert!(Filter::parse(&text.repeat(FILTER_BYTES_MAX / text.len())).is_err());
    }
}

#[test]
fn filters_are_equal_by_text_and_travel_as_it() {
    let filter = Filter::parse("a = 1").unwrap();
    assert_eq!(filter, filter.clone());
    assert_ne!(filter, Filter::parse("a  = 1").unwrap());
    assert_eq!((format!("{filter}"), format!("{filter:?}")), ("a = 1".to_owned(), "\"a = 1\"".to_owned()));
    assert_eq!(serde_json::to_string(&filter).unwrap(), "\"a = 1\"");
    assert_eq!(serde_json::from_str::<Filter>("\"a = 1\"").unwrap(), filter);
    let refused = serde_json::from_str::<Filter>("\"a = \"").unwrap_err().to_string();
    assert!(refused.starts_with("column 5: expected a value"), "{refused}");
}

/// What `docs/filters.md` shows as filters and as errors.
#[test]
fn the_document_is_right() {
    let document = include_str!("../../docs/filters.md");
    let blocks = |kind: &str| -> Vec<&str> {
        let fence = format!("```{kind}\n");
        document.split(fence.as_str()).skip(1).map(|block| block.split("\n```").next().unwrap()).collect()
    };
    let filters: Vec<_> = blocks("sql").into_iter().flat_map(str::lines).collect();
    assert!(filters.len() > 5);
    for filter in filters {
        Filter::parse(filter).unwrap_or_else(|error| panic!("{}", error.picture()));
    }
    let pictures = blocks("text");
    assert!(!pictures.is_empty());
    for picture in pictures {
        let text = picture.lines().next().unwrap();
        assert_eq!(Filter::parse(text).unwrap_err().picture(), picture);
    }
    for limit in
        [FILTER_BYTES_MAX, FILTER_NODES_MAX, FILTER_DEPTH_MAX, FILTER_LIST_MAX, FILTER_PATTERN_RUN_MAX]
    {
        assert!(document.contains(&format!(" {limit} ")), "{limit}");
    }
}

proptest! {
    #[test]
    fn random_conditions_agree_with_the_naive_evaluator(
        condition in naive::condition(),
        message in naive::message(),
    ) {
        prop_assert_eq!(truth(&condition.to_string(), &message), condition.truth(&message));
    }

    /// Words and signs in any order, and what is no word at all.
    #[test]
    fn random_text_is_a_filter_or_an_error(
        words in prop::collection::vec(prop_oneof![
            4 => prop::sample::select(&[
                "a", "x-y", "'t'", "'%_'", "\"q\"", "@key", "@size", "1", "2.5", "NOT", "AND", "OR", "IN", "LIKE",
                "ESCAPE", "'!'", "IS", "NULL", "BETWEEN", "TRUE", "=", "<>", "<", "+", "-", "*", "/", "(", ")", ",",
            ][..]).prop_map(str::to_owned),
            1 => ".{0,3}",
        ], 0..20),
        spaced in any::<bool>(),
    ) {
        let text = words.join(if spaced { " " } else { "" });
        match Filter::parse(&text) {
            Ok(filter) => {
                prop_assert_eq!(filter.to_string(), text);
                truth(filter.as_str(), &order());
            }
            Err(error) => {
                prop_assert!(text.is_char_boundary(error.position()));
                prop_assert!(error.picture().lines().count() == 2);
            }
        }
    }
}
