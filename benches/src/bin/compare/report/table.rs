//! A table, as Markdown and as HTML.

use std::fmt::Write as _;

/// A table. The first columns are texts, the others numbers.
#[derive(Clone, Debug)]
pub struct Table {
    /// Headings.
    pub columns: Vec<String>,
    /// How many columns are texts.
    pub texts: usize,
    /// Cells, as many in each row as there are columns.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(texts: usize, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { columns: columns.into_iter().map(Into::into).collect(), texts, rows: Vec::new() }
    }

    /// As Markdown, with an empty line behind it.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let aligned = |at| if at < self.texts { "---" } else { "---:" }.to_owned();
        let rule: Vec<_> = (0..self.columns.len()).map(aligned).collect();
        let mut text = line(&self.columns) + &line(&rule);
        self.rows.iter().for_each(|row| text += &line(row));
        text + "\n"
    }

    /// As HTML.
    pub fn html(&self) -> String {
        let line = |name: &str, cells: &[String]| {
            let cells = cells.iter().enumerate().fold(String::new(), |mut text, (at, cell)| {
                let class = match cell.as_str() {
                    "met" => " class=\"n good\"",
                    "MISSED" => " class=\"n bad\"",
                    _ if at < self.texts => "",
                    _ => " class=n",
                };
                // Writing to a string does not fail.
                let _ = write!(text, "<{name}{class}>{}</{name}>", escaped(cell));
                text
            });
            format!("<tr>{cells}</tr>\n")
        };
        let rows: String = self.rows.iter().map(|row| line("td", row)).collect();
        format!("<table>\n<thead>{}</thead>\n<tbody>{rows}</tbody>\n</table>\n", line("th", &self.columns))
    }
}

/// A number with so many digits behind the point; a dash for none.
pub fn number(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { "–".to_owned() }
}

/// A number with three significant digits or all in front of the point.
pub fn short(value: f64) -> String {
    let digits = match value.abs() {
        0.0..0.01 => 4,
        0.01..1.0 => 3,
        1.0..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    number(value, digits)
}

/// Text within HTML.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_printed_in_both_ways() {
        let mut table = Table::new(1, ["a", "b"]);
        table.rows.push(vec!["<x>".to_owned(), "1".to_owned()]);
        assert_eq!(table.markdown(), "| a | b |\n| --- | ---: |\n| <x> | 1 |\n\n");
        assert!(table.html().contains("<tr><td>&lt;x&gt;</td><td class=n>1</td></tr>"), "{}", table.html());
    }

    #[test]
    fn numbers_keep_three_digits() {
        let texts = [0.0, 0.0034, 0.25, 3.456, 34.56, 345.6, f64::NAN].map(short);
        assert_eq!(texts, ["0.0000", "0.0034", "0.250", "3.46", "34.6", "346", "–"]);
    }
}
