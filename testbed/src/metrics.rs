//! Parses a scrape: OpenMetrics text, as far as the daemon uses it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// One line with a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name, with its suffix (`_total`, `_bucket`).
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

/// A whole scrape.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// Kind of each metric, by its name without suffix.
    pub kinds: BTreeMap<String, String>,
    /// Its samples, in order.
    pub samples: Vec<Sample>,
}

impl Scrape {
    /// Reads a scrape.
    ///
    /// # Errors
    /// When a line is no OpenMetrics, or the end is missing.
    pub fn parse(text: &str) -> Result<Self> {
        let mut scrape = Self::default();
        let body = text
            .strip_suffix("# EOF\n")
            .context("a scrape without # EOF")?;
        for line in body.lines() {
            match line.strip_prefix("# ") {
                Some(comment) => scrape.comment(comment).with_context(|| line.to_owned())?,
                None => scrape
                    .samples
                    .push(sample(line).with_context(|| format!("no sample: {line}"))?),
            }
        }
        Ok(scrape)
    }

    fn comment(&mut self, comment: &str) -> Result<()> {
        let mut words = comment.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("TYPE"), Some(name), Some(kind)) => {
                let old = self.kinds.insert(name.to_owned(), kind.to_owned());
                ensure!(old.is_none(), "declared twice");
            }
            (Some("HELP" | "UNIT"), Some(_), Some(_)) => {}
            _ => bail!("no comment of OpenMetrics"),
        }
        Ok(())
    }

    /// The sum of all samples with this name that have these labels, and perhaps others.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted = |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|v| v == value))
        };
        self.samples
            .iter()
            .filter(wanted)
            .map(|sample| sample.value)
            .sum()
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, mut rest) = match series.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}')?),
        None => (series, ""),
    };
    let mut labels = BTreeMap::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once("=\"")?;
        // The daemon's values contain no quotation marks.
        let (value, after) = after.split_once('"')?;
        if labels.insert(key.to_owned(), value.to_owned()).is_some() {
            return None;
        }
        rest = match after.strip_prefix(',') {
            Some(more) => more,
            None if after.is_empty() => after,
            None => return None,
        };
    }
    let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    (!name.is_empty() && name.chars().all(named)).then_some(Sample {
        name: name.to_owned(),
        labels,
        value: value.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_is_read_and_nonsense_is_not() {
        let text = "# HELP a A thing.\n# TYPE a counter\na_total{x=\"1\",y=\"z z\"} 2\na_total{x=\"2\"} 3\n# EOF\n";
        let scrape = Scrape::parse(text).expect("a scrape");
        assert_eq!(scrape.sum("a_total", &[]), 5.0);
        assert_eq!(scrape.sum("a_total", &[("y", "z z")]), 2.0);
        assert_eq!(scrape.kinds["a"], "counter");
        for bad in [
            "a 1\n",
            "a{ 1\n# EOF\n",
            "a{x=1} 1\n# EOF\n",
            "a x\n# EOF\n",
            "\n# EOF\n",
        ] {
            assert!(Scrape::parse(bad).is_err(), "{bad}");
        }
    }
}
