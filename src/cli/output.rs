//! What a command writes: results to standard output, progress to standard error where that is a terminal.
//!
//! Nothing here panics when a reader goes away: a closed standard output ends the command quietly.

use std::fmt;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, StdoutLock, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;

use super::exit::End;

/// Bytes collected before they go to standard output.
const BUFFER_BYTES: usize = 64 << 10;

/// Standard output, buffered.
pub struct Output(BufWriter<StdoutLock<'static>>);

impl Output {
    /// Standard output, for this command alone.
    pub fn new() -> Self {
        Self(BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock()))
    }

    /// Writes bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.0.write_all(bytes).map_err(closed)
    }

    /// Writes a text and ends the line.
    pub fn line(&mut self, text: impl std::fmt::Display) -> anyhow::Result<()> {
        writeln!(self.0, "{text}").map_err(closed)
    }

    /// Writes a value as JSON in one line.
    pub fn json(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        serde_json::to_writer(&mut self.0, value).map_err(|error| closed(error.into()))?;
        self.0.write_all(b"\n").map_err(closed)
    }

    /// Hands over what has been collected.
    pub fn flush(&mut self) -> anyhow::Result<()> {
        self.0.flush().map_err(closed)
    }
}

fn closed(error: io::Error) -> anyhow::Error {
    if error.kind() == ErrorKind::BrokenPipe {
        return End::OutputClosed.into();
    }
    anyhow::Error::new(error).context("cannot write to standard output")
}

/// Writes one value as JSON, and nothing else.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut output = Output::new();
    output.json(value)?;
    output.flush()
}

/// Writes one line, and nothing else.
pub fn print_line(text: impl std::fmt::Display) -> anyhow::Result<()> {
    let mut output = Output::new();
    output.line(text)?;
    output.flush()
}

/// Rows in columns, with a head; numbers to the right.
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub fn new(head: &[impl AsRef<str>]) -> Self {
        Self { head: head.iter().map(|title| title.as_ref().to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row; it has as many cells as there are columns.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Writes the table.
    pub fn print(&self, output: &mut Output) -> anyhow::Result<()> {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.head[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let is_number = |cell: &str| cell.chars().all(|c| c.is_ascii_digit() || c == ' ');
        let right: Vec<bool> = (0..self.head.len())
            .map(|column| !self.rows.is_empty() && self.rows.iter().all(|row| is_number(&row[column])))
            .collect();
        let head: Vec<String> = self.head.iter().map(|title| title.to_ascii_uppercase()).collect();
        for row in std::iter::once(&head).chain(&self.rows) {
            let cells = row.iter().zip(&widths).zip(&right).map(|((cell, width), right)| {
                if *right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            output.line(cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// Progress on a terminal; nothing where standard error is none.
pub struct Progress(ProgressBar);

impl Progress {
    /// Progress towards `total`, or without an end where that is not known. `what` is counted: "messages".
    pub fn new(total: Option<u64>, what: &'static str) -> Self {
        if !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10));
        let template = match total {
            Some(total) => {
                format!("{{bar:30}} {{at}}/{} {what}  {{rate}}/s  {{eta}} left", grouped(total))
            }
            None => format!("{{spinner}} {{at}} {what}  {{rate}}/s  {{elapsed}}"),
        };
        // The templates above are valid; should one not be, the default style is as good.
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        // A text that cannot be written is left out: there is nothing else to do about it.
        let at = |state: &ProgressState, text: &mut dyn fmt::Write| {
            let _ = text.write_str(&grouped(state.pos()));
        };
        let rate = |state: &ProgressState, text: &mut dyn fmt::Write| {
            let _ = text.write_str(&grouped(state.per_sec() as u64));
        };
        bar.set_style(style.with_key("at", at).with_key("rate", rate));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// This far now.
    pub fn at(&self, position: u64) {
        self.0.set_position(position);
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        self.0.inc(count);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A number with its thousands apart: `1 234 567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// So many of a thing: `1 message`, `1 234 messages`.
pub fn counted(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(number))
}

/// A number of bytes for people: `12.3 MiB`.
pub fn bytes_text(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Seconds for people: `1d 2h`, in whole seconds.
pub fn seconds_text(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// Milliseconds for people: `100ms`, `1m 30s`.
pub fn milliseconds_text(milliseconds: u64) -> String {
    humantime::format_duration(Duration::from_millis(milliseconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1 000"), (1_234_567, "1 234 567")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn one_is_no_plural() {
        for (number, text) in [(0, "0 messages"), (1, "1 message"), (2000, "2 000 messages")] {
            assert_eq!(counted(number, "message"), text);
        }
    }
}
