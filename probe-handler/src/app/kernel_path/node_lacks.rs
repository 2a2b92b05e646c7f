//! What the node's kernel lacks for the rules of the kernel path. Each attempt to install rules makes such a kernel run
//! modprobe, so the result of one pod's attempt applies to all pods, and attempts are repeated less and less often.

use std::time::Duration;

use tokio::time::Instant;

use kernel::exemption::{Family, Matcher};

/// Time until the next attempt: doubled with each failure, up to [`MOST`].
const FIRST: Duration = Duration::from_secs(60);
const MOST: Duration = Duration::from_secs(3_600);

/// The matchers that may be used for exempt connections in pods, in the order in which they are tried.
const MATCHERS: &[Matcher] = &[Matcher::XtBpf, Matcher::Tc];

/// What is missing, by address family and matcher.
#[derive(Debug)]
pub struct NodeLacks {
    lacks: Vec<Lack>,
    /// The matchers that may be used.
    matchers: &'static [Matcher],
}

#[derive(Debug)]
struct Lack {
    family: Family,
    matcher: Matcher,
    why: String,
    next: Instant,
    pause: Duration,
}

impl NodeLacks {
    /// A record in which nothing is missing. `tc_only`: always use tc.
    pub fn new(tc_only: bool) -> Self {
        Self {
            lacks: Vec::new(),
            matchers: match tc_only {
                true => &MATCHERS[1..],
                false => MATCHERS,
            },
        }
    }

    fn of(&mut self, families: &[Family], matcher: Matcher) -> impl Iterator<Item = &mut Lack> {
        let of = move |lack: &&mut Lack| lack.matcher == matcher && families.contains(&lack.family);
        self.lacks.iter_mut().filter(of)
    }

    /// The matchers with which rules of `families` may be installed in a pod at `now`; other pods may not try the same until
    /// the result is known.
    ///
    /// # Errors
    /// What is missing.
    pub fn may_try(&mut self, families: &[Family], now: Instant) -> Result<Matcher, String> {
        let mut missing = String::new();
        for matcher in self.matchers {
            let Some(why) = self
                .of(families, *matcher)
                .find_map(|lack| (now < lack.next).then(|| lack.why.clone()))
            else {
                for lack in &mut self.lacks {
                    if families.contains(&lack.family) && now >= lack.next {
                        lack.next = now + lack.pause;
                    }
                }
                return Ok(*matcher);
            };
            missing = why;
        }
        Err(missing)
    }

    /// The matchers with which rules may be installed again in a pod in which they worked: those not known to
    /// be missing.
    pub fn known(&mut self, families: &[Family]) -> Matcher {
        let matchers = self.matchers;
        let known = |matcher: &&Matcher| self.of(families, **matcher).next().is_none();
        matchers.iter().find(known).copied().unwrap_or(Matcher::Tc)
    }

    /// Records that rules of `families` could not be installed with `matcher` at `now`.
    pub fn failed(&mut self, families: &[Family], matcher: Matcher, why: &str, now: Instant) {
        for family in families {
            let is_it = |lack: &Lack| lack.family == *family && lack.matcher == matcher;
            let before = self.lacks.iter().position(is_it);
            let before = before.map(|index| self.lacks.swap_remove(index));
            let pause = before.map_or(FIRST, |lack| (lack.pause * 2).min(MOST));
            self.lacks.push(Lack {
                family: *family,
                matcher,
                why: why.to_owned(),
                next: now + pause,
                pause,
            });
        }
    }

    /// Records that rules of `families` were installed with `matcher`; returns whether it was missing before.
    pub fn worked(&mut self, families: &[Family], matcher: Matcher) -> bool {
        let before = self.lacks.len();
        self.lacks
            .retain(|lack| lack.matcher != matcher || !families.contains(&lack.family));
        self.lacks.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &[Family] = &[Family::V4];
    const V6: &[Family] = &[Family::V6];

    /// A node without any matcher for IPv4.
    fn lacks(now: Instant) -> NodeLacks {
        let mut lacks = NodeLacks::new(false);
        lacks.failed(V4, Matcher::XtBpf, "no xt_bpf", now);
        lacks.failed(V4, Matcher::Tc, "no cls_bpf", now);
        lacks
    }

    #[test]
    fn xt_bpf_is_tried_first_and_tc_where_it_is_missing() {
        let now = Instant::now();
        let mut lacks = NodeLacks::new(false);
        assert_eq!(lacks.may_try(&Family::ALL, now), Ok(Matcher::XtBpf));
        lacks.failed(V4, Matcher::XtBpf, "no xt_bpf", now);
        assert_eq!(lacks.may_try(&Family::ALL, now), Ok(Matcher::Tc));
        assert_eq!(lacks.may_try(V6, now), Ok(Matcher::XtBpf));
        assert_eq!(
            lacks.may_try(V4, now + FIRST),
            Ok(Matcher::XtBpf),
            "the module may be loaded by now"
        );
        assert_eq!(lacks.may_try(V4, now + FIRST), Ok(Matcher::Tc));
    }

    #[test]
    fn tc_alone_is_used_if_that_is_set() {
        let now = Instant::now();
        let mut lacks = NodeLacks::new(true);
        assert_eq!(lacks.may_try(V4, now), Ok(Matcher::Tc));
        assert_eq!(lacks.known(V4), Matcher::Tc);
        lacks.failed(V4, Matcher::Tc, "no cls_bpf", now);
        assert_eq!(lacks.may_try(V4, now), Err("no cls_bpf".to_owned()));
    }

    #[test]
    fn one_pods_attempt_stands_for_the_node() {
        let now = Instant::now();
        let mut lacks = lacks(now);
        let refused = Err("no cls_bpf".to_owned());
        assert_eq!(lacks.may_try(&Family::ALL, now), refused);
        assert_eq!(lacks.may_try(V4, now + FIRST), Ok(Matcher::XtBpf));
        assert_eq!(lacks.may_try(V4, now + FIRST), refused, "one is enough");
    }

    #[test]
    fn attempts_become_rare() {
        let start = Instant::now();
        let mut lacks = lacks(start);
        let mut attempts = 0;
        for second in 0..24 * 3_600 {
            let now = start + Duration::from_secs(second);
            if lacks.may_try(V4, now).is_ok() {
                attempts += 1;
                lacks.failed(V4, Matcher::XtBpf, "no xt_bpf", now);
                lacks.failed(V4, Matcher::Tc, "no cls_bpf", now);
            }
        }
        assert!((24..=40).contains(&attempts), "{attempts}");
    }

    #[test]
    fn once_a_pod_works_all_may_try() {
        let now = Instant::now();
        let mut lacks = lacks(now);
        assert!(!lacks.worked(V6, Matcher::Tc), "another family");
        assert!(lacks.may_try(V4, now).is_err());
        assert!(lacks.worked(&Family::ALL, Matcher::Tc));
        assert!(!lacks.worked(&Family::ALL, Matcher::Tc));
        assert_eq!(lacks.may_try(V4, now), Ok(Matcher::Tc));
        assert_eq!(lacks.known(V4), Matcher::Tc);
        assert!(lacks.worked(V4, Matcher::XtBpf));
        assert_eq!(lacks.known(V4), Matcher::XtBpf);
    }
}
