//! Medians of what was measured in turn, and their ratio.

use std::fmt;

/// One row: what PostgreSQL's own tools take, and what walship takes.
#[derive(Debug)]
struct Row {
    what: String,
    unit: &'static str,
    /// Where PostgreSQL has such a thing.
    native: Option<f64>,
    walship: f64,
}

/// The table.
#[derive(Debug, Default)]
pub struct Table(Vec<Row>);

impl Table {
    /// Adds the medians of two sides that were measured equally often, if both were.
    pub fn add(&mut self, what: impl Into<String>, unit: &'static str, native: &[f64], walship: &[f64]) {
        assert!(native.is_empty() || native.len() == walship.len(), "each side has its turn in each round");
        let native = (!native.is_empty()).then(|| median(native));
        self.0.push(Row { what: what.into(), unit, native, walship: median(walship) });
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| | PostgreSQL | walship | walship : PostgreSQL |\n|---|---|---|---|")?;
        for Row { what, unit, native, walship } in &self.0 {
            let (native, ratio) = match native {
                Some(native) => (format!("{native:.2} {unit}"), format!("{:.2}", walship / native)),
                None => ("has none".to_owned(), "-".to_owned()),
            };
            writeln!(f, "| {what} | {native} | {walship:.2} {unit} | {ratio} |")?;
        }
        Ok(())
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
