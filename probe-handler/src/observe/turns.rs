//! Who asks often is made to wait, so that no asker costs much and none has to wait for another.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Between two turns of one address. Prometheus asks every few seconds.
const SPACING: Duration = Duration::from_millis(40);
/// How long anybody is made to wait.
const LONGEST: Duration = Duration::from_secs(1);

/// When each address has its next turn.
#[derive(Default)]
pub struct Turns(Mutex<HashMap<IpAddr, Instant>>);

impl Turns {
    /// When it is the turn of `address`, which asks now; None where it has asked too often to be let wait.
    pub fn take(&self, address: IpAddr) -> Option<Instant> {
        let now = Instant::now();
        let mut turns = self.0.lock();
        // Addresses that have not asked of late are not remembered.
        turns.retain(|_, next| *next > now);
        let next = turns.entry(address).or_insert(now);
        if *next > now + LONGEST {
            return None;
        }
        let turn = *next;
        *next += SPACING;
        Some(turn)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::time::advance;

    use super::*;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_seldom_never_waits() {
        let turns = Turns::default();
        for _ in 0..3 {
            assert_eq!(turns.take(ONE), Some(Instant::now()));
            advance(SPACING).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_often_waits_and_nobody_else_does() {
        let turns = Turns::default();
        let now = Instant::now();
        for number in 0..5 {
            assert_eq!(turns.take(ONE), Some(now + SPACING * number));
        }
        assert_eq!(turns.take(OTHER), Some(now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_turned_away_until_it_ebbs_and_then_forgotten() {
        let turns = Turns::default();
        let served = (0..1000).filter(|_| turns.take(ONE).is_some()).count();
        assert_eq!(served, 26, "a second's worth, and the first");
        assert!(turns.take(OTHER).is_some());
        advance(LONGEST * 2).await;
        assert_eq!(turns.take(OTHER), Some(Instant::now()));
        assert_eq!(turns.0.lock().len(), 1, "only who has a turn to come");
    }
}
