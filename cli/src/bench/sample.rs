//! Samples of things that take turns, so that a drift of the machine meets all alike.

use evenkeel::simd::Isa;
use std::time::Instant;

/// Noise above this share says that something else was using the machine: figures from that time are not to be trusted.
///
/// A loop of multiply-adds does the same work whenever it runs, so that its times spread only as the machine lets it run. While
/// another process shared the core, or a host gave a tenth of the time to others, the spread was 13 % and more.
pub(crate) const NOISY: f64 = 0.05;

/// Seconds of a sample of a kernel, at least about: on one thread a thousand times what a clock can be off by. Several threads first need
/// some time to settle, and a sample makes up for that.
pub(crate) fn sample_seconds(threads: usize) -> f64 {
    if threads == 1 { 0.4e-3 } else { 4e-3 }
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// For all samples that take turns with one another.
    pub(crate) seconds: f64,
    /// Rounds that are made even if they take longer.
    pub(crate) rounds: usize,
}

/// Seconds that the same thing took, shortest first.
#[derive(Clone, Debug)]
pub(crate) struct Samples {
    sorted: Vec<f64>,
}

impl Samples {
    fn new(mut seconds: Vec<f64>) -> Samples {
        seconds.sort_by(f64::total_cmp);
        Samples { sorted: seconds }
    }

    /// The sample below which `share` of the others lie, the nearest where none lies there.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of the samples")]
    fn at(&self, share: f64) -> f64 {
        self.sorted[(share * (self.sorted.len() - 1) as f64).round() as usize]
    }

    pub(crate) fn median(&self) -> f64 {
        median(&self.sorted)
    }

    pub(crate) fn min(&self) -> f64 {
        self.at(0.0)
    }

    pub(crate) fn max(&self) -> f64 {
        self.at(1.0)
    }

    pub(crate) fn len(&self) -> usize {
        self.sorted.len()
    }

    /// `(p90 - p10) / median`.
    pub(crate) fn spread(&self) -> f64 {
        (self.at(0.9) - self.at(0.1)) / self.median()
    }
}

/// Samples on one instruction set, and what it is held to.
pub(crate) struct Ours {
    pub(crate) isa: Isa,
    pub(crate) samples: Samples,
    /// The loop of multiply-adds, as long as the samples.
    pub(crate) peak: Samples,
    /// Operations that the loop's times are for.
    pub(crate) peak_flops: f64,
}

impl Ours {
    pub(crate) fn peak_gflops(&self) -> f64 {
        self.peak_flops / self.peak.median() * 1e-9
    }
}

/// The middle of sorted numbers, or the mean of the two in the middle.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    let n = sorted.len();
    (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0
}

/// Samples of `count` things in rounds; `sample(i)` takes one of thing i. Each round begins with another, and ends by telling `done`
/// which share of the effort has been made.
pub(crate) fn take_turns(
    count: usize,
    effort: Effort,
    mut sample: impl FnMut(usize) -> f64,
    mut done: impl FnMut(f64),
) -> Vec<Samples> {
    let start = Instant::now();
    let mut seconds = vec![Vec::new(); count];
    let mut round = 0;
    while round < effort.rounds || start.elapsed().as_secs_f64() < effort.seconds {
        for i in 0..count {
            let i = (i + round) % count;
            seconds[i].push(sample(i));
        }
        round += 1;
        done((round as f64 / effort.rounds as f64).min(start.elapsed().as_secs_f64() / effort.seconds));
    }
    seconds.into_iter().map(Samples::new).collect()
}

/// How often to repeat something for it to take `seconds`, at least once; `run(n)` repeats it n times and says how long that took.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of repetitions, far below 2^53")]
pub(crate) fn repetitions(seconds: f64, mut run: impl FnMut(usize) -> f64) -> usize {
    run(1); // caches and pages
    let mut reps = 1;
    loop {
        // The shorter of two: a pause in one would look like work.
        let took = run(reps).min(run(reps));
        if took >= seconds / 4.0 {
            return (reps as f64 * seconds / took).round().max(1.0) as usize;
        }
        reps *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_by_hand() {
        let samples = Samples::new(vec![5.0, 1.0, 2.0, 4.0, 3.0, 11.0, 10.0, 9.0, 8.0, 7.0, 6.0]);
        assert_eq!((samples.median(), samples.min(), samples.max(), samples.len()), (6.0, 1.0, 11.0, 11));
        assert_eq!(samples.spread(), 8.0 / 6.0);
        assert_eq!(Samples::new(vec![1.0, 2.0]).median(), 1.5);
        assert_eq!(Samples::new(vec![3.0]).spread(), 0.0);
    }

    #[test]
    fn everything_has_its_turn_first() {
        let (mut order, mut shares) = (Vec::new(), Vec::new());
        let sample = |i| {
            order.push(i);
            i as f64
        };
        let samples = take_turns(3, Effort { seconds: 0.0, rounds: 2 }, sample, |share| shares.push(share));
        assert_eq!(shares, [0.5, 1.0]);
        assert_eq!(order, [0, 1, 2, 1, 2, 0]);
        assert_eq!(samples.iter().map(Samples::median).collect::<Vec<_>>(), [0.0, 1.0, 2.0]);
    }

    #[test]
    fn repetitions_add_up_to_the_time_asked_for() {
        assert_eq!(repetitions(1.0, |n| n as f64 / 100.0), 100);
        assert_eq!(repetitions(1.0, |n| n as f64 * 3.0), 1);
    }
}
