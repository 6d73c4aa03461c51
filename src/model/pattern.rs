//! Patterns of topic names: words between dots, of which `*` stands for one word and `#` for any number of them,
//! none included. As in AMQP 0-9-1.

/// Whether a text is meant as a pattern.
#[must_use]
pub fn is_pattern(text: &str) -> bool {
    text.split('.').any(|word| matches!(word, "*" | "#"))
}

/// Whether the pattern stands for the name. Takes time for each word of one and each word of the other.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let words: Vec<&str> = name.split('.').collect();
    // Whether the pattern so far stands for the first n words.
    let mut reached = vec![false; words.len() + 1];
    reached[0] = true;
    for part in pattern.split('.') {
        if part == "#" {
            if let Some(first) = reached.iter().position(|&reached| reached) {
                reached[first..].fill(true);
            }
            continue;
        }
        for at in (0..words.len()).rev() {
            reached[at + 1] = reached[at] && (part == "*" || part == words[at]);
        }
        reached[0] = false;
    }
    reached.last().copied().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_one_word_and_a_hash_any_number() {
        for (pattern, name, matching) in [
            ("orders.*", "orders.eu", true),
            ("orders.*", "orders", false),
            ("orders.*", "orders.eu.new", false),
            ("orders.#", "orders", true),
            ("orders.#", "orders.eu", true),
            ("orders.#", "orders.eu.new", true),
            ("orders.#", "ordersx.eu", false),
            ("*.new", "orders.new", true),
            ("*.new", "new", false),
            ("#", "anything.at.all", true),
            ("#.new", "new", true),
            ("#.new", "a.b.new", true),
            ("#.new", "a.b.newer", false),
            ("a.#.z", "a.z", true),
            ("a.#.z", "a.b.c.z", true),
            ("a.#.z", "a.b.c", false),
            ("a.#.#.z.*", "a.q.z.y", true),
            ("a.*.#", "a", false),
            ("a.b", "a.b", true),
        ] {
            assert_eq!(matches(pattern, name), matching, "{pattern} {name}");
        }
    }

    #[test]
    fn only_whole_words_make_a_pattern() {
        assert!(is_pattern("a.*") && is_pattern("#") && is_pattern("*.b"));
        assert!(!is_pattern("a.b*") && !is_pattern("a#") && !is_pattern(""));
    }
}
