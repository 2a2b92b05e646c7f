//! Reads flags of a mesh's init container. The tools of all meshes parse them with spf13/pflag.

use k8s_openapi::api::core::v1::Container;

/// A flag's name.
#[derive(Clone, Copy)]
pub(super) struct Flag {
    /// `name` of `--name`.
    pub(super) long: &'static str,
    /// `n` of `-n`.
    pub(super) short: Option<char>,
}

impl Flag {
    pub(super) const fn new(long: &'static str, short: char) -> Self {
        let short = Some(short);
        Self { long, short }
    }

    pub(super) const fn long(long: &'static str) -> Self {
        Self { long, short: None }
    }

    /// The flag's value in the command of `container`; `None` if it is not given.
    pub(super) fn of(self, container: &Container) -> Option<&str> {
        let parts = [&container.command, &container.args];
        let words = parts.into_iter().flatten().flatten();
        self.among(words.map(String::as_str))
    }

    /// The flag's value among `words`: `--name value`, `--name=value`, `-n value`, `-n=value` or `-nvalue`. If the flag is
    /// given several times, the last one counts.
    fn among<'a>(self, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        let mut value = None;
        let mut words = words;
        while let Some(word) = words.next() {
            match self.rest(word) {
                Some("") => value = words.next().or(value),
                Some(given) => value = Some(given.strip_prefix('=').unwrap_or(given)),
                None => {}
            }
        }
        value
    }

    /// The text after the flag's name in `word`; `None` if `word` is not the flag.
    fn rest(self, word: &str) -> Option<&str> {
        match word.strip_prefix("--") {
            Some(long) => long
                .strip_prefix(self.long)
                .filter(|rest| rest.is_empty() || rest.starts_with('=')),
            None => word.strip_prefix('-')?.strip_prefix(self.short?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_read_as_pflag_reads_it() {
        let port = Flag::new("inbound-capture-port", 'z');
        let of = |words: &[&'static str]| port.among(words.iter().copied());
        for words in [
            &["-p", "15001", "-z", "15106"] as &[_],
            &["-z15106"],
            &["-z=15106"],
            &["--inbound-capture-port", "15106"],
            &["--inbound-capture-port=15106", "-p", "15001"],
            &["-z", "15006", "-z", "15106"],
        ] {
            assert_eq!(of(words), Some("15106"), "{words:?}");
        }
        for words in [
            &[] as &[_],
            &["-z"],
            &["z", "15106"],
            &["--inbound-capture-port-v6", "1"],
            &["--z", "1"],
        ] {
            assert_eq!(of(words), None, "{words:?}");
        }
        assert_eq!(of(&["-z", ""]), Some(""));
        assert_eq!(of(&["--inbound-capture-port="]), Some(""));
    }
}
