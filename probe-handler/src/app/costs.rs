//! Whether dials inside a pod cost too much processor time.

use std::time::Duration;

use kernel::canary::BEARABLE;

/// How many dials in a row must be cheap before a pod counts as cheap again.
const CHEAP: u32 = 2;

/// The cost of the dials inside one pod.
#[derive(Debug, Default)]
pub struct Costs {
    /// The cost of the last dial that cost too much, and the number of cheap dials since.
    too_much: Option<(Duration, u32)>,
}

impl Costs {
    /// Records a dial that cost this much processor time.
    pub fn note(&mut self, cost: Duration) {
        self.too_much = match self.too_much {
            _ if cost > BEARABLE => Some((cost, 0)),
            Some((before, cheap)) if cheap + 1 < CHEAP => Some((before, cheap + 1)),
            _ => None,
        };
    }

    /// The cost of a dial, if it is too high.
    pub fn too_much(&self) -> Option<Duration> {
        self.too_much.map(|(cost, _)| cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_one_costly_dial_two_cheap_ones_in_a_row_are_needed() {
        let (costly, cheap) = (2 * BEARABLE, BEARABLE / 100);
        let mut costs = Costs::default();
        let mut noted = |cost| {
            costs.note(cost);
            costs.too_much()
        };
        assert_eq!(noted(cheap), None);
        assert_eq!(noted(BEARABLE), None);
        assert_eq!(noted(costly), Some(costly));
        assert_eq!(noted(cheap), Some(costly));
        assert_eq!(noted(3 * costly), Some(3 * costly));
        assert_eq!(noted(cheap), Some(3 * costly));
        assert_eq!(noted(cheap), None);
        assert_eq!(noted(cheap), None);
    }
}
