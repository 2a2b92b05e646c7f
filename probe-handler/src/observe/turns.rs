//! Rate limit for each client address, so that no client costs much processor time or delays another.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Interval between two turns of one address. Prometheus sends a request every few seconds.
const SPACING: Duration = Duration::from_millis(40);
/// Maximum time that a client waits.
const LONGEST: Duration = Duration::from_secs(1);

/// The time of the next turn of each address.
#[derive(Default)]
pub struct Turns(Mutex<HashMap<IpAddr, Instant>>);

impl Turns {
    /// The time of the turn for a request from `address`; `None` if the address has sent too many requests to
    /// wait.
    pub fn take(&self, address: IpAddr) -> Option<Instant> {
        let now = Instant::now();
        let mut turns = self.0.lock();
        // Addresses without recent requests are removed.
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
    async fn infrequent_requests_never_wait() {
        let turns = Turns::default();
        for _ in 0..3 {
            assert_eq!(turns.take(ONE), Some(Instant::now()));
            advance(SPACING).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn frequent_requests_wait_and_other_clients_do_not() {
        let turns = Turns::default();
        let now = Instant::now();
        for number in 0..5 {
            assert_eq!(turns.take(ONE), Some(now + SPACING * number));
        }
        assert_eq!(turns.take(OTHER), Some(now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_rejected_and_its_address_is_removed_afterwards() {
        let turns = Turns::default();
        let served = (0..1000).filter(|_| turns.take(ONE).is_some()).count();
        assert_eq!(served, 26, "the requests of a second, and the first one");
        assert!(turns.take(OTHER).is_some());
        advance(LONGEST * 2).await;
        assert_eq!(turns.take(OTHER), Some(Instant::now()));
        assert_eq!(
            turns.0.lock().len(),
            1,
            "only the address with a future turn"
        );
    }
}
