//! Workers that are awake when work comes.
//!
//! A worker of rayon's falls asleep within some 20 us without work, in the gaps of a pass already, and is late when it is called again:
//! by 50 us as a rule, but by a millisecond on a virtual machine that lends its processors to others meanwhile, a whole turn of theirs.
//! And a system may wake it on the processor of the thread that calls it, though others are idle.
//!
//! So each worker of a pool made here has a first piece of work that lasts as long as the pool: to do what other work there is
//! ([`Watch::keep`]). It looks for it without a break until it has found none for [`AWAKE`]; then, as long as a budget is entered, with
//! breaks in proportion to the time for which there was none; and then it rests until one is entered again. That piece is the first of
//! all, and so lies below whatever else a worker does: nothing that waits for a worker ever waits for it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a worker looks for work without a break.
pub(super) const AWAKE: Duration = Duration::from_millis(1);
/// Its longest break while a budget is entered.
const BREAK: Duration = Duration::from_millis(1);

/// What the workers of a pool share.
#[derive(Default)]
pub(super) struct Watch {
    /// Budgets that are entered.
    entered: AtomicUsize,
    /// Workers that do not look for work now.
    resting: AtomicUsize,
    /// Whether workers shall leave.
    is_closed: AtomicBool,
    /// How often those that rest have been called.
    calls: Mutex<usize>,
    called: Condvar,
}

impl Watch {
    /// A budget that is entered until the result is dropped.
    pub(super) fn enter(&self) -> Entered<'_> {
        self.entered.fetch_add(1, Ordering::SeqCst);
        self.call();
        Entered(self)
    }

    /// Wakes those that rest.
    pub(super) fn call(&self) {
        // Who goes to rest counts itself first, and only then looks whether there is a reason not to: one of the two sees the other.
        if self.resting.load(Ordering::SeqCst) > 0 {
            *self.calls() += 1;
            self.called.notify_all();
        }
    }

    /// Keeps a worker: `work` does a piece of work and returns true, or finds none.
    pub(super) fn keep(&self, work: impl Fn() -> bool) {
        let mut pauses = Pauses::begin();
        while !self.is_closed.load(Ordering::SeqCst) {
            if work() || !pauses.next() && self.rest(pauses.begun.elapsed()) {
                pauses = Pauses::begin();
            }
        }
    }

    /// Rests: a while where a budget is entered, else until called. Returns whether it was.
    fn rest(&self, idle: Duration) -> bool {
        let before = *self.calls();
        self.resting.fetch_add(1, Ordering::SeqCst);
        let stays = |calls: &mut usize| *calls == before && !self.is_closed.load(Ordering::SeqCst);
        let calls = if self.entered.load(Ordering::SeqCst) > 0 {
            let rest = self.called.wait_timeout_while(self.calls(), (idle / 4).min(BREAK), stays);
            rest.unwrap_or_else(PoisonError::into_inner).0
        } else {
            self.called.wait_while(self.calls(), stays).unwrap_or_else(PoisonError::into_inner)
        };
        self.resting.fetch_sub(1, Ordering::SeqCst);
        *calls != before
    }

    fn calls(&self) -> MutexGuard<'_, usize> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A budget that is entered.
pub(super) struct Entered<'a>(&'a Watch);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.entered.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The watch of a pool, which ends with it.
pub(super) struct Owner(pub(super) Arc<Watch>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.is_closed.store(true, Ordering::SeqCst);
        self.0.call();
    }
}

/// The pauses of a thread that waits awake.
pub(super) struct Pauses {
    begun: Instant,
    count: u32,
}

impl Pauses {
    pub(super) fn begin() -> Self {
        Pauses { begun: Instant::now(), count: 0 }
    }

    /// A moment without looking, which leaves a core to the other thread that it may have, and every now and then a processor to a thread
    /// that has none. Returns whether to go on so: not for longer than [`AWAKE`].
    pub(super) fn next(&mut self) -> bool {
        self.count = self.count.wrapping_add(1);
        if self.count.is_multiple_of(64) {
            std::thread::yield_now();
        } else {
            for _ in 0..16 {
                std::hint::spin_loop();
            }
        }
        self.begun.elapsed() < AWAKE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits for what must come.
    fn until(what: &str, is_there: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_there() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn who_keeps_watch_rests_between_budgets_works_within_and_leaves_at_the_end() {
        let watch = Arc::new(Watch::default());
        let owner = Owner(Arc::clone(&watch));
        let (looks, pieces) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || {
            looks.fetch_add(1, Ordering::SeqCst);
            pieces.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
        };
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| watch.keep(work));
            }
            for _ in 0..3 {
                until("both rest", || watch.resting.load(Ordering::SeqCst) == 2);
                let entered = watch.enter();
                pieces.store(100, Ordering::SeqCst);
                until("work is done", || pieces.load(Ordering::SeqCst) == 0);
                // They go on looking, with breaks.
                let seen = looks.load(Ordering::SeqCst);
                until("more looks", || looks.load(Ordering::SeqCst) > seen + 100);
                drop(entered);
            }
            until("both rest", || watch.resting.load(Ordering::SeqCst) == 2);
            drop(owner);
        });
        assert_eq!((watch.entered.load(Ordering::SeqCst), watch.resting.load(Ordering::SeqCst)), (0, 0));
    }
}
