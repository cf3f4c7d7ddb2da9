//! One boot on its way: what a node does when a replica tells it to come back later.
//!
//! It asks one of those that may be less busy, once, and then waits where the wait is shorter. Asking everybody would make
//! every node count everywhere, and everybody's waits longer.

use alloc::sync::Arc;

/// A boot's attempts so far.
#[derive(Clone, Debug, Default)]
pub struct BootAttempts {
    /// The shorter of the waits that were told, and by whom.
    told: Option<(u64, Arc<str>)>,
    asked_elsewhere: bool,
}

impl BootAttempts {
    /// The replica at `here` serves as many as it can and says when to come back, and who else there is. Whom to ask next, and
    /// after how many milliseconds.
    pub fn on_later(&mut self, here: &Arc<str>, after_ms: u64, elsewhere: &[Arc<str>]) -> (Arc<str>, u64) {
        let (told_ms, told_by) = match self.told.take() {
            Some((told_ms, told_by)) if told_ms < after_ms => (told_ms, told_by),
            Some(_) | None => (after_ms, here.clone()),
        };
        match elsewhere.iter().find(|address| *address != here) {
            Some(other) if !self.asked_elsewhere => {
                self.asked_elsewhere = true;
                self.told = Some((told_ms, told_by));
                (other.clone(), 0)
            }
            Some(_) | None => (told_by, told_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_asks_elsewhere_once_and_then_waits_where_the_wait_is_shorter() {
        let [a, b, c] = ["a:1", "b:1", "c:1"].map(Arc::<str>::from);
        let others = [b.clone(), c.clone()];
        let mut attempts = BootAttempts::default();
        assert_eq!(attempts.on_later(&a, 700, &others), (b.clone(), 0));
        assert_eq!(attempts.on_later(&b, 900, &[a.clone()]), (a.clone(), 700));
        assert_eq!(attempts.on_later(&a, 300, &others), (a, 300), "it asked elsewhere once");

        let mut alone = BootAttempts::default();
        assert_eq!(alone.on_later(&c, 50, &[]), (c.clone(), 50));
        let mut shorter = BootAttempts::default();
        assert_eq!(shorter.on_later(&c, 50, &[b.clone()]), (b.clone(), 0));
        assert_eq!(shorter.on_later(&b, 20, &[]), (b, 20));
    }
}
