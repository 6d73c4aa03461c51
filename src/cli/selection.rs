//! Which messages are meant: by key, headers and a filter.

use batonmq::model::filter::Filter;
use bytes::Bytes;
use clap::Args;

use super::exit::End;
use super::value;

/// Flags of commands that look for messages. All of them hold together.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Which messages")]
pub struct SelectionArgs {
    /// Only messages with this key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only messages whose header of this name has this value; several times for several
    #[arg(long, value_name = "NAME=VALUE", value_parser = value::header)]
    header: Vec<(String, Bytes)>,
    /// Only messages that match this, such as "region = 'eu' AND price >= 100"
    #[arg(long, value_name = "FILTER", value_parser = value::filter)]
    filter: Option<Filter>,
}

impl SelectionArgs {
    /// All of it as one filter.
    pub fn filter(&self) -> anyhow::Result<Option<String>> {
        let key = self.key.as_ref().map(|key| format!("@key = {}", quoted(key, '\'')));
        let headers = self.header.iter().map(|(name, value)| {
            // What is given on a command line is a text.
            format!("{} = {}", quoted(name, '"'), quoted(&String::from_utf8_lossy(value), '\''))
        });
        let mut all: Vec<String> = key.into_iter().chain(headers).collect();
        match &self.filter {
            Some(filter) if all.is_empty() => all.push(filter.to_string()),
            Some(filter) => all.push(format!("({filter})")),
            None => {}
        }
        if all.is_empty() {
            return Ok(None);
        }
        let filter = all.join(" AND ");
        let wrong =
            |error| End::Usage(format!("--key, --header and --filter are too much together: {error}"));
        Filter::parse(&filter).map_err(wrong)?;
        Ok(Some(filter))
    }
}

/// The text between quotes; a quote in it is written twice.
fn quoted(text: &str, quote: char) -> String {
    let twice = String::from_iter([quote, quote]);
    format!("{quote}{}{quote}", text.replace(quote, &twice))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(key: Option<&str>, headers: &[(&str, &'static str)], filter: Option<&str>) -> Option<String> {
        let header = headers.iter().map(|(name, value)| ((*name).to_owned(), Bytes::from(*value))).collect();
        let filter = filter.map(|text| Filter::parse(text).unwrap());
        SelectionArgs { key: key.map(str::to_owned), header, filter }.filter().unwrap()
    }

    #[test]
    fn all_of_it_holds_together() {
        assert_eq!(filter(None, &[], None), None);
        assert_eq!(filter(None, &[], Some("a = 1 OR b = 2")).unwrap(), "a = 1 OR b = 2");
        let all = filter(Some("it's"), &[("x \"y\"", "1"), ("z", "")], Some("a = 1 OR b = 2"));
        assert_eq!(all.unwrap(), r#"@key = 'it''s' AND "x ""y""" = '1' AND "z" = '' AND (a = 1 OR b = 2)"#);
    }
}
