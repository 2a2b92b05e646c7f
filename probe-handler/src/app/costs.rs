//! Whether dialling inside a pod costs too much.

use std::time::Duration;

use kernel::canary::BEARABLE;

/// How many dials in a row must be cheap before a pod counts as cheap again.
const CHEAP: u32 = 2;

/// What the dials inside one pod have cost.
#[derive(Debug, Default)]
pub struct Costs {
    /// The last one that cost too much, and how many have not since then.
    too_much: Option<(Duration, u32)>,
}

impl Costs {
    /// A dial has cost this much processor time.
    pub fn note(&mut self, cost: Duration) {
        self.too_much = match self.too_much {
            _ if cost > BEARABLE => Some((cost, 0)),
            Some((before, cheap)) if cheap + 1 < CHEAP => Some((before, cheap + 1)),
            _ => None,
        };
    }

    /// What a dial costs, if that is too much.
    pub fn too_much(&self) -> Option<Duration> {
        self.too_much.map(|(cost, _)| cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_dear_dial_is_too_much_until_two_in_a_row_are_cheap() {
        let (dear, cheap) = (2 * BEARABLE, BEARABLE / 100);
        let mut costs = Costs::default();
        let mut noted = |cost| {
            costs.note(cost);
            costs.too_much()
        };
        assert_eq!(noted(cheap), None);
        assert_eq!(noted(BEARABLE), None);
        assert_eq!(noted(dear), Some(dear));
        assert_eq!(noted(cheap), Some(dear));
        assert_eq!(noted(3 * dear), Some(3 * dear));
        assert_eq!(noted(cheap), Some(3 * dear));
        assert_eq!(noted(cheap), None);
        assert_eq!(noted(cheap), None);
    }
}
