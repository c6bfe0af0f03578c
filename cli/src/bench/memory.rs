//! Passes over memory, on every thread at once.

use super::{slowest, timed};
use evenkeel::Threads;
use evenkeel::machine::{Cache, probe};
use evenkeel::tensor::{ALIGNMENT, Tensor};
use std::sync::{Mutex, MutexGuard, PoisonError};

const KIB: usize = 1024;
/// The second-level cache where the system does not tell: as small as it comes.
const L2: usize = 256 * KIB;

/// Bytes of one core's second-level cache.
pub(super) fn l2(caches: &[Cache]) -> usize {
    caches.iter().find(|cache| cache.level == 2).map_or(L2, |cache| cache.bytes)
}

/// One way over memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pass {
    Read,
    Copy,
    Triad,
}

impl Pass {
    pub(super) fn name(self) -> &'static str {
        match self {
            Pass::Read => "read",
            Pass::Copy => "copy",
            Pass::Triad => "triad",
        }
    }

    /// Once over `data`, cut into as many arrays as the pass has. Returns the bytes moved.
    fn over(self, data: &mut [f32]) -> usize {
        // Whole cache lines, so that every array begins with one.
        let line = ALIGNMENT / size_of::<f32>();
        let part = |arrays: usize| data.len() / arrays / line * line;
        match self {
            Pass::Read => probe::read(data),
            Pass::Copy => {
                let part = part(2);
                let (x, y) = data.split_at_mut(part);
                probe::copy(x, &mut y[..part])
            }
            Pass::Triad => {
                let part = part(3);
                let (a, rest) = data.split_at_mut(part);
                let (b, c) = rest.split_at(part);
                probe::triad(a, b, &c[..part])
            }
        }
    }
}

/// Memory of each thread's own, in several sizes.
pub(super) struct Buffers<'a> {
    threads: &'a Threads,
    own: Vec<Mutex<Vec<Tensor<f32>>>>,
}

impl Buffers<'_> {
    /// One buffer of each size for each thread.
    pub(super) fn new<'a>(threads: &'a Threads, sizes: &[usize]) -> evenkeel::Result<Buffers<'a>> {
        // Each thread makes and fills its own: memory lies near the processor that touches it first.
        let own: Vec<_> = threads.together(|_| sizes.iter().map(|&bytes| filled(bytes)).collect());
        let own = own.into_iter().map(|own: evenkeel::Result<_>| own.map(Mutex::new));
        Ok(Buffers { threads, own: own.collect::<evenkeel::Result<_>>()? })
    }

    fn of_thread(&self, thread: usize) -> MutexGuard<'_, Vec<Tensor<f32>>> {
        self.own[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds of the slowest thread for `reps` passes over its buffer of size `which`.
    pub(super) fn over(&self, which: usize, pass: Pass, reps: usize) -> f64 {
        slowest(self.threads, |thread| {
            let mut own = self.of_thread(thread);
            let data = own[which].data_mut();
            pass.over(data); // so that what fits in a cache is in it
            timed(|| {
                for _ in 0..reps {
                    pass.over(data);
                }
            })
        })
    }

    /// Bytes that one pass of all threads moves.
    pub(super) fn bytes(&self, which: usize, pass: Pass) -> f64 {
        (pass.over(self.of_thread(0)[which].data_mut()) * self.threads.count()) as f64
    }
}

/// Ones: pages that were never written may all be the same page of zeros.
fn filled(bytes: usize) -> evenkeel::Result<Tensor<f32>> {
    let mut tensor = Tensor::zeros([bytes / size_of::<f32>()])?;
    tensor.data_mut().fill(1.0);
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_go_over_equal_parts() {
        let mut data = vec![1.0; 1000];
        let passes = [Pass::Read, Pass::Copy, Pass::Triad];
        assert_eq!(passes.map(|pass| pass.over(&mut data)), [4000, 2 * 4 * 496, 3 * 4 * 320]);
        let threads = Threads::new(2).unwrap();
        let buffers = Buffers::new(&threads, &[400, 4000]).unwrap();
        assert_eq!((buffers.bytes(0, Pass::Read), buffers.bytes(1, Pass::Copy)), (800.0, 2.0 * 2.0 * 4.0 * 496.0));
        assert!(buffers.over(1, Pass::Read, 3) > 0.0);
    }
}
