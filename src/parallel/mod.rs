//! Threads that the caller owns, and work cut by size alone.
//!
//! A [`Threads`] is a budget: a number of threads, or a pool that the caller already has. [`Threads::run`] enters it; inside,
//! kernels split what is worth splitting, outside they run on the calling thread. A training run enters once.
//!
//! **Same bits for any number of threads.** Work is cut into blocks whose size depends on its shape only. Each block is
//! computed by itself and written to a place of its own; partial results are merged afterwards in the order of their blocks.
//! Which thread takes which block is left to the pool and changes nothing.
//!
//! **No worse than one thread.** Handing work to another thread takes a few microseconds, more where the worker has gone to
//! sleep, so a kernel states what it will cost (`Cost`), and work below [`FORK_NANOSECONDS`], or four times that where workers sleep,
//! stays where it is. Two things that are offered as such, as a loader's next batches beside the work on these, are handed over whatever they
//! take.
//!
//! **Awake.** The workers of [`Threads::new`] look for work also where there is none at the moment, and so does who waits for another
//! thread's half: what `watch` says of it.
//!
//! **No allocation.** Blocks are halved by recursion over `rayon::join`, whose jobs lie on the stack.

mod watch;

/// The pools of [`Threads::from_pool`] are this version's.
pub use rayon;

use crate::error::{Error, Result};
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use watch::{Owner, Pauses, Watch};

/// Estimated nanoseconds on one thread below which work is not split.
///
/// `cargo bench --bench parallel` times one kernel over and over, on one thread and split over two whatever its size: with workers that
/// stay awake the second overtakes the first below 4 us. In a training step there are gaps, and threads share a machine with others: of
/// 5, 10, 20, 50 and 200 us, `evenkeel compare --lab mlp100 --data mnist` took less time with 50 than with 200 for batches of 64 and 256
/// on 2 and on 4 threads (0.76 to 0.92 of it), while with less it took now more and now less.
pub const FORK_NANOSECONDS: u64 = 50_000;

/// The same where workers fall asleep whenever they find nothing. On a 4-core machine the same command with 4 threads took a tenth longer
/// than with one when work was split from 40 us on, and as long when it was split from 200 us on.
const FORK_NANOSECONDS_ASLEEP: u64 = 200_000;

/// What a piece of work costs, to decide whether splitting it pays.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Multiplications and additions.
    pub(crate) flops: usize,
    /// Bytes read and written.
    pub(crate) bytes: usize,
}

impl Cost {
    /// Least time on one thread, by rates that a core reaches in products (64 flop/ns) and in its caches (32 B/ns): what it really
    /// takes may be more, so that work is split a little late rather than too early.
    fn nanoseconds(self) -> u64 {
        (self.flops / 64).max(self.bytes / 32) as u64
    }

    /// Whether such work is split by the threads of [`Threads::new`], if it can be cut.
    pub(crate) fn is_split_by_default(self) -> bool {
        self.nanoseconds() >= FORK_NANOSECONDS
    }
}

#[derive(Clone)]
struct Scope {
    workers: usize,
    fork_nanoseconds: u64,
    watch: Option<Arc<Watch>>,
}

const ALONE: Scope = Scope { workers: 1, fork_nanoseconds: u64::MAX, watch: None };

thread_local! {
    static SCOPE: RefCell<Scope> = const { RefCell::new(ALONE) };
}

static MIGRATED: AtomicU64 = AtomicU64::new(0);

/// How many pieces of work have run on another worker than the one that offered them, since the process began.
///
/// A test that claims to have run in parallel checks that this moved.
pub fn migrated() -> u64 {
    MIGRATED.load(Ordering::Relaxed)
}

/// A budget of threads that the caller owns.
///
/// # Examples
/// ```
/// use evenkeel::Threads;
/// let threads = Threads::new(2)?;
/// let sum: i32 = threads.run(|| (1..=4).sum());
/// assert_eq!(sum, 10);
/// # Ok::<(), evenkeel::Error>(())
/// ```
#[derive(Clone)]
pub struct Threads {
    pool: Option<Arc<rayon::ThreadPool>>,
    fork_nanoseconds: u64,
    /// That of a pool made here, if each of its threads can have a processor for itself.
    owner: Option<Arc<Owner>>,
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").field("count", &self.count()).finish_non_exhaustive()
    }
}

impl Default for Threads {
    fn default() -> Self {
        Threads::one()
    }
}

impl Threads {
    /// The calling thread alone.
    pub fn one() -> Self {
        Threads { pool: None, fork_nanoseconds: FORK_NANOSECONDS, owner: None }
    }

    /// A pool of `count` threads, made here and ended with the last clone of this value; for 1, the calling thread alone.
    ///
    /// If they are no more than the processors, they are awake while [`run`](Self::run) goes on, also without work: a millisecond without
    /// a break, and then with breaks of at most a millisecond. More threads sleep when they find nothing, and work is split for them from
    /// 200 us on in place of [`FORK_NANOSECONDS`].
    ///
    /// # Errors
    /// If `count` is 0 or above 1024, or if the system gives no threads.
    pub fn new(count: usize) -> Result<Self> {
        if count == 0 || count > 1024 {
            return Err(Error::invalid("threads", count, "from 1 to 1024"));
        }
        if count == 1 {
            return Ok(Threads::one());
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|i| format!("evenkeel-{i}"))
            .build()
            .map_err(|e| Error::invalid("threads", count, format!("a number that the system can give ({e})")))?;
        // Every worker has begun when this returns, and has what looking for work allocates the first time.
        pool.broadcast(|_| ());
        let has_a_processor_each = std::thread::available_parallelism().is_ok_and(|available| count <= available.get());
        let threads = Threads::from_pool(Arc::new(pool));
        Ok(if has_a_processor_each { threads.kept_awake() } else { threads })
    }

    /// With workers that keep watch: those of a new pool, which have no other work yet.
    fn kept_awake(self) -> Self {
        let owner = self.pool.as_ref().map(|pool| {
            let watch = Arc::new(Watch::default());
            let kept = Arc::clone(&watch);
            pool.spawn_broadcast(move |_| kept.keep(does_other_work));
            Arc::new(Owner(watch))
        });
        Threads { fork_nanoseconds: FORK_NANOSECONDS, owner, ..self }
    }

    fn watch(&self) -> Option<&Arc<Watch>> {
        self.owner.as_ref().map(|owner| &owner.0)
    }

    /// A pool of rayon's that the caller already has. Its workers may have other things to do, and sleep when they find nothing: work is
    /// split from 200 us on.
    ///
    /// # Examples
    /// ```
    /// use evenkeel::{Threads, parallel::rayon};
    /// let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
    /// assert_eq!(Threads::from_pool(pool.into()).count(), 2);
    /// # Ok::<(), rayon::ThreadPoolBuildError>(())
    /// ```
    pub fn from_pool(pool: Arc<rayon::ThreadPool>) -> Self {
        Threads { pool: Some(pool), fork_nanoseconds: FORK_NANOSECONDS_ASLEEP, owner: None }
    }

    /// The same threads, with work split from an estimated `nanoseconds` on (0: always), in place of what [`new`](Self::new) and
    /// [`from_pool`](Self::from_pool) say.
    ///
    /// For tests, and for machines where waking a thread costs something else.
    pub fn fork_from(mut self, nanoseconds: u64) -> Self {
        self.fork_nanoseconds = nanoseconds;
        self
    }

    /// Number of threads.
    pub fn count(&self) -> usize {
        self.pool.as_ref().map_or(1, |pool| pool.current_num_threads())
    }

    /// Runs `f` with these threads at the disposal of the kernels that it calls.
    ///
    /// While a kernel waits for another thread, its own may run what another caller brings to these threads: hold no lock across a kernel
    /// that `f` of another caller needs.
    ///
    /// `f` itself runs on one of them, so what is set for the calling thread (see [`with_isa`](crate::simd::with_isa)) does not
    /// hold in it.
    pub fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            None => within(ALONE, f),
            Some(pool) => {
                let scope = Scope {
                    workers: pool.current_num_threads(),
                    fork_nanoseconds: self.fork_nanoseconds,
                    watch: self.watch().cloned(),
                };
                let _entered = self.watch().map(|watch| watch.enter());
                pool.install(|| within(scope, f))
            }
        }
    }

    /// Calls `f(i)` on every thread, i from 0, and none before all are there; the results in that order.
    ///
    /// For measuring what the threads do at the same time. Kernels that `f` calls stay on their thread.
    ///
    /// # Examples
    /// ```
    /// use evenkeel::Threads;
    /// assert_eq!(Threads::new(3)?.together(|i| 10 * i), [0, 10, 20]);
    /// # Ok::<(), evenkeel::Error>(())
    /// ```
    pub fn together<R: Send>(&self, f: impl Fn(usize) -> R + Sync) -> Vec<R> {
        let Some(pool) = &self.pool else { return vec![within(ALONE, || f(0))] };
        let missing = AtomicUsize::new(pool.current_num_threads());
        let _entered = self.watch().map(|watch| watch.enter());
        pool.broadcast(|context| {
            missing.fetch_sub(1, Ordering::AcqRel);
            let mut pauses = Pauses::begin();
            while missing.load(Ordering::Acquire) > 0 {
                // However long it takes the others to come.
                pauses.next();
            }
            within(ALONE, || f(context.index()))
        })
    }
}

fn within<R>(scope: Scope, f: impl FnOnce() -> R) -> R {
    struct Undo(Scope);
    impl Drop for Undo {
        fn drop(&mut self) {
            SCOPE.with(|s| std::mem::swap(&mut *s.borrow_mut(), &mut self.0));
        }
    }
    let _undo = Undo(SCOPE.with(|s| s.replace(scope)));
    f()
}

/// Does a piece of the pool's work, if there is any.
fn does_other_work() -> bool {
    rayon::yield_now() == Some(rayon::Yield::Executed)
}

/// Work that can be cut between two of its blocks.
pub(crate) trait Split: Sized + Send {
    /// The first `at` blocks, and the rest.
    fn split(self, at: usize) -> (Self, Self);

    /// Where to cut `count` blocks, at least two of them, in about equal parts.
    fn middle(&self, count: usize) -> usize {
        count / 2
    }
}

/// A slice in blocks of `block` elements, the last one shorter.
pub(crate) struct Blocks<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) block: usize,
}

/// A slice that can be written, in blocks of `block` elements, the last one shorter.
pub(crate) struct BlocksMut<'a, T> {
    pub(crate) data: &'a mut [T],
    pub(crate) block: usize,
}

impl<T: Sync> Split for Blocks<'_, T> {
    fn split(self, at: usize) -> (Self, Self) {
        let (a, b) = self.data.split_at((at * self.block).min(self.data.len()));
        (Blocks { data: a, block: self.block }, Blocks { data: b, block: self.block })
    }
}

impl<T: Send> Split for BlocksMut<'_, T> {
    fn split(self, at: usize) -> (Self, Self) {
        let cut = (at * self.block).min(self.data.len());
        let (a, b) = self.data.split_at_mut(cut);
        (BlocksMut { data: a, block: self.block }, BlocksMut { data: b, block: self.block })
    }
}

impl<A: Split, B: Split> Split for (A, B) {
    fn split(self, at: usize) -> (Self, Self) {
        let (a0, a1) = self.0.split(at);
        let (b0, b1) = self.1.split(at);
        ((a0, b0), (a1, b1))
    }
}

impl<A: Split> Split for Option<A> {
    fn split(self, at: usize) -> (Self, Self) {
        match self {
            None => (None, None),
            Some(work) => {
                let (a, b) = work.split(at);
                (Some(a), Some(b))
            }
        }
    }
}

/// Whether work of this cost is split, where there is something to split.
#[inline]
pub(crate) fn forks(cost: Cost) -> bool {
    SCOPE.with(|s| {
        let scope = s.borrow();
        scope.workers > 1 && cost.nanoseconds() >= scope.fork_nanoseconds
    })
}

/// Calls `f(index, block)` for each of `count` blocks of `work`, on several threads where `cost` says that it pays.
pub(crate) fn for_each<W: Split>(count: usize, cost: Cost, work: W, f: impl Fn(usize, W) + Sync) {
    visit(count, cost, work, &f, false);
}

/// [`for_each`], from the last block to the first: what was read last is near when the next pass begins with the first.
pub(crate) fn for_each_backwards<W: Split>(count: usize, cost: Cost, work: W, f: impl Fn(usize, W) + Sync) {
    visit(count, cost, work, &f, true);
}

fn visit<W: Split>(count: usize, cost: Cost, work: W, f: &(impl Fn(usize, W) + Sync), backwards: bool) {
    if count > 0 {
        let scope = (count > 1 && forks(cost)).then(|| SCOPE.with(|s| s.borrow().clone()));
        if let Some(Scope { watch: Some(watch), .. }) = &scope {
            watch.call();
        }
        let shares = scope.as_ref().map_or(1, |scope| scope.workers);
        halve(0, count, work, f, Order { backwards, shares, scope: scope.as_ref() });
    }
}

#[derive(Clone, Copy)]
struct Order<'a> {
    backwards: bool,
    /// Threads that have a share of it. Backwards is within a share, so that a thread finds near what it read last.
    shares: usize,
    /// What holds on the thread that offers the work, if it is offered to others.
    scope: Option<&'a Scope>,
}

fn halve<W: Split>(first: usize, count: usize, work: W, f: &(impl Fn(usize, W) + Sync), order: Order<'_>) {
    if count == 1 {
        return f(first, work);
    }
    let left = work.middle(count);
    let (a, b) = work.split(left);
    let (a, b) = ((first, left, a), (first + left, count - left, b));
    let (a, b) = if order.backwards && order.shares <= 1 { (b, a) } else { (a, b) };
    let order = Order { shares: order.shares.div_ceil(2), ..order };
    match order.scope {
        None => {
            halve(a.0, a.1, a.2, f, order);
            halve(b.0, b.1, b.2, f, order);
        }
        Some(scope) => {
            fork(scope, || halve(a.0, a.1, a.2, f, order), || halve(b.0, b.1, b.2, f, order));
        }
    }
}

/// Runs `a` here, and `b` here or on another thread.
fn fork<A: Send, B: Send>(scope: &Scope, a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    // Whether another thread is at work on b.
    let is_away = AtomicBool::new(false);
    rayon::join_context(
        |_| {
            let a = a();
            // Not asleep, for a while: then as `join` waits.
            let mut pauses = Pauses::begin();
            while scope.watch.is_some() && is_away.load(Ordering::Acquire) {
                if !does_other_work() && !pauses.next() {
                    break;
                }
            }
            a
        },
        |context| {
            if !context.migrated() {
                return b();
            }
            let _away = Away::begin(&is_away);
            MIGRATED.fetch_add(1, Ordering::Relaxed);
            // So that what is offered there can be split as well.
            within(scope.clone(), b)
        },
    )
}

/// Whether there are several threads for the work of this one.
pub(crate) fn are_several() -> bool {
    SCOPE.with(|s| s.borrow().workers > 1)
}

/// Runs both, and where there are several threads, `b` beside `a` if one of them is free.
pub(crate) fn join<A: Send, B: Send>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    let scope = SCOPE.with(|s| s.borrow().clone());
    if scope.workers == 1 {
        return (a(), b());
    }
    if let Some(watch) = &scope.watch {
        watch.call();
    }
    fork(&scope, a, b)
}

/// [`join`] with half of the threads for each.
pub(crate) fn join_halves<A: Send, B: Send>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    let scope = SCOPE.with(|s| s.borrow().clone());
    let half = Scope { workers: scope.workers.div_ceil(2), ..scope };
    let other = half.clone();
    join(|| within(half, a), || within(other, b))
}

/// Says so as long as it is there, also where what it stands for panics.
struct Away<'a>(&'a AtomicBool);

impl<'a> Away<'a> {
    fn begin(is_away: &'a AtomicBool) -> Self {
        is_away.store(true, Ordering::Release);
        Away(is_away)
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    const DEAR: Cost = Cost { flops: usize::MAX, bytes: 0 };

    /// Whether what is up to the system may still come.
    fn is_soon(start: Instant) -> bool {
        start.elapsed() < Duration::from_secs(60)
    }

    #[test]
    fn every_block_is_visited_once_with_its_index_whatever_the_threads() {
        for threads in [1, 2, 4, 7] {
            for len in [0usize, 1, 9, 10, 11, 95] {
                let mut y = vec![0usize; len];
                let x: Vec<usize> = (0..len).collect();
                let count = len.div_ceil(10);
                let work = (Blocks { data: &x, block: 10 }, BlocksMut { data: &mut y, block: 10 });
                Threads::new(threads).unwrap().run(|| {
                    for_each(count, DEAR, work, |index, (x, y)| {
                        for (x, y) in x.data.iter().zip(y.data) {
                            *y += 1000 * index + x;
                        }
                    });
                });
                for (i, y) in y.iter().enumerate() {
                    assert_eq!(*y, 1000 * (i / 10) + i, "{threads} threads, {len} elements");
                }
            }
        }
    }

    #[test]
    fn work_within_work_is_split_on_every_thread() {
        let (visits, has_moved) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (outer, inner) = ([0u8; 3], [0u8; 64]);
        let (threads, start) = (Threads::new(2).unwrap(), Instant::now());
        // Whether a worker takes a piece of the outer work is up to the system, which may be busy.
        for turn in (1..).take_while(|_| is_soon(start)) {
            threads.run(|| {
                let home = rayon::current_thread_index();
                for_each(3, DEAR, Blocks { data: &outer, block: 1 }, |_, _| {
                    assert!(forks(DEAR));
                    has_moved.fetch_add(usize::from(rayon::current_thread_index() != home), Ordering::Relaxed);
                    for_each(64, DEAR, Blocks { data: &inner, block: 1 }, |_, _| {
                        visits.fetch_add(1, Ordering::Relaxed);
                    });
                });
            });
            assert_eq!(visits.load(Ordering::Relaxed), 192 * turn);
            if has_moved.load(Ordering::Relaxed) > 0 {
                return;
            }
        }
        panic!("no piece of the outer work ran on another thread");
    }

    /// Work that is split, in so many pieces.
    fn fork(pieces: usize, f: impl Fn(usize) + Sync) {
        for_each(pieces, DEAR, Blocks { data: &vec![0u8; pieces], block: 1 }, |i, _| f(i));
    }

    /// Two threads that are kept awake, whatever the number of processors.
    fn two_awake() -> Threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        Threads::from_pool(Arc::new(pool)).kept_awake()
    }

    #[test]
    fn a_call_that_waits_for_another_call_is_served() {
        let threads = two_awake();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let other = threads.clone();
            scope.spawn(move || {
                other.run(move || {
                    fork(2, |_| ());
                    receiver.recv().unwrap();
                });
            });
            threads.run(move || sender.send(()).unwrap());
        });
    }

    #[test]
    fn work_of_the_caller_beside_ours_ends() {
        let threads = two_awake();
        for _ in 0..2000 {
            let sums = threads.run(|| {
                let sum = |n| {
                    let all = AtomicUsize::new(0);
                    fork(n, |i| {
                        all.fetch_add(i, Ordering::Relaxed);
                    });
                    all.into_inner()
                };
                rayon::join(|| sum(64), || rayon::join(|| Threads::one().run(|| sum(8)), || sum(16)))
            });
            assert_eq!(sums, (2016, (28, 120)));
        }
    }

    #[test]
    fn only_threads_with_a_processor_each_are_kept_awake() {
        let available = std::thread::available_parallelism().unwrap().get();
        let too_many = Threads::new(available + 1).unwrap();
        assert!(too_many.owner.is_none() && too_many.fork_nanoseconds == FORK_NANOSECONDS_ASLEEP);
        if available > 1 {
            let fitting = Threads::new(available).unwrap();
            assert!(fitting.owner.is_some() && fitting.fork_nanoseconds == FORK_NANOSECONDS);
        }
    }

    #[test]
    fn who_waits_for_a_piece_that_panics_panics() {
        let threads = two_awake();
        let has_moved = AtomicBool::new(false);
        // Whether a worker takes the second piece in time is up to the system.
        for _ in 0..10_000 {
            let has_begun = AtomicBool::new(false);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                threads.run(|| {
                    let home = rayon::current_thread_index();
                    fork(2, |i| {
                        if i == 1 {
                            has_moved.fetch_or(rayon::current_thread_index() != home, Ordering::AcqRel);
                            has_begun.store(true, Ordering::Release);
                            panic!("the piece that panics");
                        }
                        let start = Instant::now();
                        while !has_begun.load(Ordering::Acquire) && start.elapsed() < Duration::from_millis(1) {
                            std::thread::yield_now();
                        }
                    });
                });
            }));
            assert!(result.is_err());
            if has_moved.load(Ordering::Acquire) {
                return threads.run(|| fork(2, |_| ()));
            }
        }
        panic!("no second piece ran on another thread");
    }

    #[test]
    fn backwards_is_from_the_last_to_the_first() {
        let seen = std::sync::Mutex::new(Vec::new());
        for_each_backwards(5, DEAR, Blocks { data: &[7u8; 9], block: 2 }, |index, block| {
            seen.lock().unwrap().push((index, block.data.len()));
        });
        assert_eq!(*seen.lock().unwrap(), [(4, 1), (3, 2), (2, 2), (1, 2), (0, 2)]);
        let sum = AtomicUsize::new(0);
        Threads::new(3).unwrap().run(|| {
            for_each_backwards(100, DEAR, Blocks { data: &[0u8; 100], block: 1 }, |index, _| {
                sum.fetch_add(index, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.load(Ordering::Relaxed), 4950);
    }

    #[test]
    fn small_work_and_bare_calls_stay_on_the_calling_thread() {
        let here = std::thread::current().id();
        let check = |_, _: Blocks<'_, u8>| assert_eq!(std::thread::current().id(), here);
        for_each(100, DEAR, Blocks { data: &[0; 100], block: 1 }, check);
        let two = Threads::new(2).unwrap();
        two.run(|| {
            let worker = std::thread::current().id();
            for_each(100, Cost { flops: 100, bytes: 100 }, Blocks { data: &[0; 100], block: 1 }, |_, _| {
                assert_eq!(std::thread::current().id(), worker);
            });
        });
        assert!(Threads::new(0).is_err());
    }

    #[test]
    fn together_is_once_on_each_thread_and_at_the_same_time() {
        for count in [1, 2, 4, 7] {
            let threads = Threads::new(count).unwrap();
            for _ in 0..20 {
                let begun = AtomicUsize::new(0);
                let seen = threads.together(|i| {
                    begun.fetch_add(1, Ordering::AcqRel);
                    // A thread that had to wait for another to end would wait for ever.
                    while begun.load(Ordering::Acquire) < count {
                        std::thread::yield_now();
                    }
                    (i, std::thread::current().id())
                });
                assert_eq!(seen.iter().map(|s| s.0).collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
                let ids: std::collections::HashSet<_> = seen.iter().map(|s| s.1).collect();
                assert_eq!(ids.len(), count);
            }
        }
    }
}
