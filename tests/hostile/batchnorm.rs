//! The kernel of batch normalisation: both forward passes, both backward passes, and running statistics.

use crate::kernels::{drawn, nan_only, same_at_every_offset, unwritten, with};
use crate::support::*;
use crate::table::Kind::*;
use crate::table::*;
use evenkeel::Result;
use evenkeel::kernels::Activation;
use evenkeel::kernels::batchnorm::{self, BatchNorm, Gradients, Saved, Statistics};
use evenkeel::simd::Element;

const MAX: usize = usize::MAX;
const NAN: f64 = f64::NAN;
const INFINITY: f64 = f64::INFINITY;

/// What a pass is called with, right or not: lengths of slices, and numbers.
#[derive(Clone, Debug)]
struct Call {
    channels: usize,
    inner: usize,
    /// Of x, of dy, and of what is written beside it.
    x: usize,
    dy: usize,
    out: usize,
    saved: usize,
    scratch: usize,
    gamma: usize,
    beta: usize,
    /// Of dgamma and dbeta, or of the given mean and variance.
    pair: [usize; 2],
    eps: f64,
    /// The given variance of the last channel.
    var: f64,
}

/// Six rows of four channels.
fn right<T: Element>() -> Call {
    over::<T>(6)
}

fn over<T: Element>(rows: usize) -> Call {
    let (len, saved, scratch) = (4 * rows, batchnorm::saved_len(4), batchnorm::scratch_len::<T>(rows, 4, 1));
    let pair = [4, 4];
    Call {
        channels: 4,
        inner: 1,
        x: len,
        dy: len,
        out: len,
        saved,
        scratch,
        gamma: 4,
        beta: 4,
        pair,
        eps: 1e-5,
        var: 1.0,
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Pass {
    Forward,
    Frozen,
    FrozenInPlace,
    Backward,
    BackwardInPlace,
}

const PASSES: [Pass; 5] = [Pass::Forward, Pass::Frozen, Pass::FrozenInPlace, Pass::Backward, Pass::BackwardInPlace];

impl Pass {
    fn is_backward(self) -> bool {
        matches!(self, Pass::Backward | Pass::BackwardInPlace)
    }

    fn is_in_place(self) -> bool {
        matches!(self, Pass::FrozenInPlace | Pass::BackwardInPlace)
    }

    fn is_frozen(self) -> bool {
        matches!(self, Pass::Frozen | Pass::FrozenInPlace)
    }

    /// Makes the pass over drawn numbers. What it may write is unwritten before, and given back: its output, saved,
    /// scratch, dgamma and dbeta.
    fn run<T: Element>(self, call: &Call) -> Result<[Guarded<T>; 5]> {
        let [gamma, beta, mean] =
            [(1, call.gamma), (2, call.beta), (3, call.pair[0])].map(|(seed, n)| drawn::<T>(seed, n));
        let mut var = vec![T::ONE; call.pair[1]];
        if let Some(last) = var.last_mut() {
            *last = T::from_f64(call.var);
        }
        let (x, dy) = (drawn::<T>(4, call.x), drawn::<T>(5, call.dy));
        // In place, what is read is what would be written.
        let out = match self {
            Pass::FrozenInPlace => x.clone(),
            Pass::BackwardInPlace => dy.clone(),
            _ => vec![T::from_f64(-7.0); call.out],
        };
        // A backward pass needs what some forward pass saved; here any numbers will do.
        let mut written = [
            Guarded::new(&out, 0),
            Guarded::new(&vec![T::ONE; call.saved], 0),
            Guarded::unwritten(call.scratch, 0),
            Guarded::unwritten(call.pair[0], 0),
            Guarded::unwritten(call.pair[1], 0),
        ];
        let norm = BatchNorm {
            channels: call.channels,
            inner: call.inner,
            gamma: Some(&gamma),
            beta: Some(&beta),
            eps: call.eps,
            activation: Activation::Relu,
        };
        attempt(&mut written, |written| {
            let [out, saved, scratch, dgamma, dbeta] = written.each_mut().map(Guarded::get_mut);
            match self {
                Pass::Forward => return batchnorm::forward(&norm, &x, out, saved, scratch),
                Pass::Frozen => return batchnorm::forward_frozen(&norm, &x, (&mean, &var), out, saved, scratch),
                Pass::FrozenInPlace => {
                    return batchnorm::forward_frozen_in_place(&norm, out, (&mean, &var), saved, scratch);
                }
                Pass::Backward => {
                    let gradients = Gradients { dx: Some(out), dgamma: Some(dgamma), dbeta: Some(dbeta) };
                    batchnorm::backward(&norm, Statistics::Batch, &x, &dy, saved, gradients, scratch);
                }
                Pass::BackwardInPlace => {
                    let parameters = (Some(dgamma), Some(dbeta));
                    batchnorm::backward_in_place(&norm, Statistics::Frozen, &x, out, saved, parameters, scratch);
                }
            }
            Ok(())
        })?;
        Ok(written)
    }
}

pub(crate) fn passes<T: Element>() -> Vec<Entry> {
    let mut entries: Vec<Entry> = PASSES
        .into_iter()
        .map(|pass| {
            let rows = lengths::<T>(pass).into_iter().chain(refused_values::<T>(pass)).chain(empties::<T>(pass));
            entry(format!("kernels::batchnorm: {pass:?}"), rows)
        })
        .collect();
    entries.push(entry("kernels::batchnorm: numbers of all passes", numbers::<T>()));
    entries.push(entry("kernels::batchnorm::update_running, Saved, scratch_len", beside_the_passes::<T>()));
    entries
}

/// Each length but one right.
fn lengths<T: Element>(pass: Pass) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |kind, input: &str, said: &[&str], change: fn(&mut Call)| {
        let mut call = right::<T>();
        change(&mut call);
        rows.push(row(kind, input, panics(said), move || pass.run::<T>(&call).map(drop)));
    };
    // In place the other operand is given apart only backward.
    match pass {
        Pass::FrozenInPlace => {
            add(Mismatched, "data of no whole row", &["23 elements in images of 4 x 1"], |call| call.x = 23)
        }
        Pass::Forward | Pass::Frozen => {
            add(Truncated, "x one short", &["x has 23 elements, its counterpart 24"], |call| call.x = 23);
            add(Truncated, "y one short", &["x has 24 elements, its counterpart 23"], |call| call.out = 23);
        }
        Pass::Backward => {
            add(Truncated, "x one short", &["dx has not the elements of x", "24", "23"], |call| call.x = 23);
            add(Truncated, "dy one short", &["x has 24 elements, its counterpart 23"], |call| call.dy = 23);
            add(Truncated, "dx one short", &["dx has not the elements of x", "24", "23"], |call| call.out = 23);
        }
        Pass::BackwardInPlace => {
            add(Truncated, "x one short", &["x has 23 elements, its counterpart 24"], |call| call.x = 23);
            add(Truncated, "dy one short", &["x has 24 elements, its counterpart 23"], |call| call.dy = 23);
        }
    }
    if !pass.is_in_place() {
        add(Mismatched, "no whole rows", &["22 elements in images of 4 x 1"], |call| {
            (call.x, call.dy, call.out) = (22, 22, 22)
        });
    }
    add(Empty, "values of no channels", &["elements in images of 0 x 1"], |call| (call.channels, call.saved) = (0, 0));
    add(Empty, "planes without values", &["24 elements in images of 4 x 0"], |call| call.inner = 0);
    add(Overflow, "planes beyond an address", &["4 channels of 9223372036854775807 values"], |call| {
        call.inner = MAX / 2
    });
    add(Oversized, "channels that are not there", &["24 elements in images of 18446744073709551615 x 1"], |call| {
        call.channels = MAX
    });
    add(Truncated, "saved one short", &["saved for 4 channels", "31", "32"], |call| call.saved -= 1);
    add(Mismatched, "saved one long", &["saved for 4 channels", "33", "32"], |call| call.saved += 1);
    add(Truncated, "scratch one short", &["elements of scratch", "needed"], |call| call.scratch -= 1);
    add(Truncated, "gamma one short", &["gamma has 3 elements for 4 channels"], |call| call.gamma = 3);
    add(Mismatched, "beta one long", &["beta has 5 elements for 4 channels"], |call| call.beta = 5);
    if pass.is_frozen() {
        add(Truncated, "a mean too few", &["3 means, 4 variances, 4 channels"], |call| call.pair[0] = 3);
        add(Mismatched, "a variance too many", &["4 means, 5 variances, 4 channels"], |call| call.pair[1] = 5);
    }
    if pass.is_backward() {
        add(Truncated, "dgamma one short", &["a parameter gradient has 3 elements for 4 channels"], |call| {
            call.pair[0] = 3
        });
        add(Mismatched, "dbeta one long", &["a parameter gradient has 5 elements for 4 channels"], |call| {
            call.pair[1] = 5
        });
    }
    rows
}

/// Numbers that no statistics or no root can be taken of.
fn refused_values<T: Element>(pass: Pass) -> Vec<Row> {
    if pass.is_backward() {
        return Vec::new();
    }
    let with_eps = |kind, eps: f64, outcome| {
        row(kind, format!("eps {eps}"), outcome, move || pass.run::<T>(&Call { eps, ..right::<T>() }).map(drop))
    };
    let eps = |kind, eps: f64| with_eps(kind, eps, invalid(&["batchnorm: eps is", "finite and"]));
    let mut rows = vec![eps(Senseless, -1e-5), eps(Nan, NAN), eps(Infinite, INFINITY), eps(Infinite, -INFINITY)];
    if pass == Pass::Forward {
        let words = ["over 4 channels cannot take statistics from one value per channel"];
        rows.push(row(OneRow, "one row", refused(Variant::OneValuePerChannel, &words), || {
            Pass::Forward.run::<T>(&over::<T>(1)).map(drop)
        }));
        rows.extend([eps(Senseless, 0.0), eps(Senseless, -0.0)]);
        return rows;
    }
    let var = |kind, eps: f64, var: f64, outcome| {
        row(kind, format!("eps {eps}, variance {var}"), outcome, move || {
            let [out, ..] = pass.run::<T>(&Call { eps, var, ..right::<T>() })?;
            // The last channel is that of the variance; its ReLU keeps NaN.
            assert!(out.get().iter().enumerate().all(|(i, y)| y.is_finite() == (i % 4 != 3 || !var.is_nan())));
            Ok(())
        })
    };
    let refused = || invalid(&["running variance + eps of channel 3 is", "above 0"]);
    rows.extend([
        row(OneRow, "one row", gives("a row"), move || pass.run::<T>(&over::<T>(1)).map(drop)),
        with_eps(Senseless, 0.0, gives("numbers")),
        var(Senseless, 0.0, 0.0, refused()),
        var(Senseless, 1e-5, -1.0, refused()),
        var(Infinite, 1e-5, -INFINITY, refused()),
        var(Senseless, 1e-5, 0.0, gives("numbers")),
        var(Subnormal, 0.0, T::LARGEST_SUBNORMAL.to_f64(), gives("numbers")),
        var(Nan, 1e-5, NAN, gives("NaN in its channel")),
        var(Infinite, 1e-5, INFINITY, gives("the shift in its channel")),
    ]);
    rows
}

/// No rows, no channels, no values: nothing is written but `saved`.
fn empties<T: Element>(pass: Pass) -> Vec<Row> {
    let sizes = [
        (ZeroRows, 0, 4, 1),
        (ZeroRows, 0, 4, 20),
        (Empty, 0, 0, 1),
        (Empty, 5, 0, 1),
        (Empty, 3, 0, 20),
        (Empty, 5, 4, 0),
    ];
    let of = |(kind, n, channels, inner): (Kind, usize, usize, usize)| {
        row(kind, format!("n {n}, c {channels}, l {inner}"), gives("nothing but what is saved"), move || {
            let scratch = batchnorm::scratch_len::<T>(n, channels, inner);
            assert_eq!(scratch, 0);
            let (none, saved, pair) = (0, batchnorm::saved_len(channels), [channels; 2]);
            let lengths = Call { channels, inner, x: none, dy: none, out: none, saved, scratch, ..right::<T>() };
            let written = pass.run::<T>(&Call { gamma: channels, beta: channels, pair, ..lengths })?;
            written[3].check_unwritten("dgamma");
            written[4].check_unwritten("dbeta");
            if pass == Pass::Forward {
                assert!(written[1].get().iter().all(|saved| saved.bits() == 0), "saved is not zeroed");
            }
            Ok(())
        })
    };
    sizes.map(of).into()
}

/// Sizes that take each way: rows in lanes, several channels, planes by columns, planes by runs.
const SIZES: [(usize, usize, usize); 5] = [(21, 3, 1), (18, 16, 1), (35, 17, 1), (6, 5, 4), (4, 3, 49)];

/// y, saved, dx, dgamma and dbeta of a batch, from slices `offset` elements from where they might begin.
fn outputs<T: Element>(
    size: (usize, usize, usize),
    statistics: Statistics,
    x: &[T],
    dy: &[T],
    offset: usize,
) -> [Vec<T>; 5] {
    let (n, c, inner) = size;
    let [gamma, beta, mean] = [1, 2, 3].map(|seed| Guarded::new(&drawn::<T>(seed, c), offset));
    let var = Guarded::new(&vec![T::from_f64(1.3); c], offset);
    let norm = BatchNorm {
        channels: c,
        inner,
        gamma: Some(gamma.get()),
        beta: Some(beta.get()),
        eps: 1e-5,
        activation: Activation::Identity,
    };
    let [x, dy] = [x, dy].map(|data| Guarded::new(data, offset));
    let lengths = [x.get().len(), batchnorm::saved_len(c), x.get().len(), batchnorm::scratch_len::<T>(n, c, inner)];
    let [mut y, mut saved, mut dx, mut scratch] = lengths.map(|len| Guarded::unwritten(len, offset));
    let [mut dgamma, mut dbeta] = [(); 2].map(|()| Guarded::new(&vec![T::ZERO; c], offset));
    let given = (mean.get(), var.get());
    match statistics {
        Statistics::Batch => {
            batchnorm::forward(&norm, x.get(), y.get_mut(), saved.get_mut(), scratch.get_mut()).unwrap()
        }
        Statistics::Frozen => {
            batchnorm::forward_frozen(&norm, x.get(), given, y.get_mut(), saved.get_mut(), scratch.get_mut()).unwrap();
        }
    }
    let gradients = Gradients { dx: Some(dx.get_mut()), dgamma: Some(dgamma.get_mut()), dbeta: Some(dbeta.get_mut()) };
    batchnorm::backward(&norm, statistics, x.get(), dy.get(), saved.get(), gradients, scratch.get_mut());
    scratch.check("scratch");
    [y, saved, dx, dgamma, dbeta].map(|part| {
        part.check("an output");
        part.get().to_vec()
    })
}

/// Looks at what passes of this size, with these statistics, make of this x and dy.
type Check<T> = fn((usize, usize, usize), Statistics, &[T], &[T]);

fn numbers<T: Element>() -> Vec<Row> {
    let for_each = |check: Check<T>| {
        move || {
            for size in SIZES {
                let len = size.0 * size.1 * size.2;
                for statistics in [Statistics::Batch, Statistics::Frozen] {
                    check(size, statistics, &drawn(4, len), &drawn(5, len));
                }
            }
            Ok(())
        }
    };
    /// A number of x or dy replaced: its channel, and all but that, in y, dx, dgamma and dbeta.
    fn poisoned<T: Element>(size: (usize, usize, usize), statistics: Statistics, x: &[T], dy: &[T], bad: f64) {
        let (place, channel) = (x.len() / 2, x.len() / 2 / size.2 % size.1);
        let clean = outputs(size, statistics, x, dy, 0);
        let found = outputs(size, statistics, &with(x, place, bad), dy, 0);
        let is_batch = statistics == Statistics::Batch;
        let own = |i: usize| if is_batch { i / size.2 % size.1 == channel } else { i == place };
        let parts = [("y", 0, false), ("dx", 2, false), ("dgamma", 3, true), ("dbeta", 4, true)];
        for (what, part, per_channel) in parts {
            for i in 0..found[part].len() {
                if if per_channel { i == channel } else { own(i) } {
                    let has_to = what == "y" || (is_batch && what != "dbeta");
                    assert!(!has_to || !found[part][i].is_finite(), "{bad}: {what}[{i}] is {}", found[part][i]);
                    assert!(!is_batch || !has_to || found[part][i].to_f64().is_nan(), "{bad}: {what}[{i}]");
                } else {
                    assert_eq!(found[part][i].bits(), clean[part][i].bits(), "{bad}: {what}[{i}]");
                }
            }
        }
        let found = outputs(size, statistics, x, &with(dy, place, bad), 0);
        assert_same_bits("y", &bits(&found[0]), &bits(&clean[0]));
        if bad.is_nan() {
            nan_only("dx", &found[2], &clean[2], own);
            nan_only("dgamma", &found[3], &clean[3], |j| j == channel);
            nan_only("dbeta", &found[4], &clean[4], |j| j == channel);
        }
    }
    vec![
        row(
            Nan,
            "NaN in x, in dy",
            gives("its channel NaN; by given statistics its element"),
            for_each(|size, statistics, x, dy| {
                poisoned(size, statistics, x, dy, NAN);
            }),
        ),
        row(
            Infinite,
            "both infinities in x, in dy",
            gives("the same"),
            for_each(|size, statistics, x, dy| {
                poisoned(size, statistics, x, dy, INFINITY);
                poisoned(size, statistics, x, dy, -INFINITY);
            }),
        ),
        row(
            Subnormal,
            "subnormal x",
            gives("x over the root of eps"),
            for_each(|size, statistics, x, dy| {
                if statistics == Statistics::Batch {
                    let (tiny, mut x) = (T::LARGEST_SUBNORMAL, x.to_vec());
                    x.iter_mut().enumerate().for_each(|(i, x)| *x = if i % 2 == 0 { tiny } else { -tiny });
                    let [y, saved, dx, ..] = outputs(size, statistics, &x, dy, 0);
                    assert!(y.iter().chain(&dx).all(|y| y.is_finite()));
                    let rstd = Saved::new(&saved, size.1).rstd(0);
                    near_one(&"rstd", rstd, 1.0 / 1e-5f64.sqrt(), || 1e-10 * rstd);
                }
            }),
        ),
        row(
            Subnormal,
            "a channel without spread",
            gives("beta bit for bit, dgamma and dx of finite numbers"),
            for_each(|size, statistics, x, dy| {
                if statistics == Statistics::Batch {
                    let [y, saved, dx, dgamma, _] = outputs(size, statistics, &vec![x[0]; x.len()], dy, 0);
                    let beta = drawn::<T>(2, size.1);
                    for (i, y) in y.iter().enumerate() {
                        assert_eq!(y.bits(), beta[i / size.2 % size.1].bits(), "y[{i}]");
                    }
                    assert!((0..size.1).all(|channel| Saved::new(&saved, size.1).var(channel) == 0.0));
                    assert!(
                        dx.iter().all(|dx| dx.is_finite()) && dgamma.iter().all(|g| g.to_f64() == 0.0),
                        "{dgamma:?}"
                    );
                }
            }),
        ),
        row(
            Overflow,
            "squares that overflow",
            gives("y of the order of 1 and an infinite variance"),
            for_each(|size, statistics, x, dy| {
                if statistics == Statistics::Batch {
                    let up = if T::NAME == "f32" { 1e30 } else { 1e300 };
                    let huge: Vec<T> = x.iter().map(|x| T::from_f64(x.to_f64() * up)).collect();
                    let [y, saved, ..] = outputs(size, statistics, &huge, dy, 0);
                    assert!(y.iter().all(|y| y.to_f64().abs() < 100.0));
                    assert!((0..size.1).all(|channel| Saved::new(&saved, size.1).var(channel) == INFINITY));
                }
            }),
        ),
        row(
            Misaligned,
            "every offset to 16",
            gives("the same bits"),
            for_each(|size, statistics, x, dy| {
                same_at_every_offset(|offset| bits(&outputs(size, statistics, x, dy, offset).concat()));
            }),
        ),
    ]
}

fn beside_the_passes<T: Element>() -> Vec<Row> {
    let moved = |saved: usize, offsets: Option<usize>, n: usize, momentum: f64, pair: [usize; 2]| {
        let mut running = unwritten::<T, 2>(pair);
        let before = bits(&[running[0].get(), running[1].get()].concat());
        attempt(&mut running, |running| {
            let offset = offsets.map(|len| vec![T::ONE; len]);
            let [mean, var] = running.each_mut().map(Guarded::get_mut);
            batchnorm::update_running(&vec![T::ONE; saved], offset.as_deref(), n, momentum, (mean, var));
            Ok(())
        })?;
        Ok((before, running.map(|part| part.get().to_vec())))
    };
    let wrong = |kind, input: &'static str, said: &[&str], saved, offsets, pair| {
        row(kind, input, panics(said), move || moved(saved, offsets, 5, 0.1, pair).map(drop))
    };
    vec![
        wrong(Truncated, "saved one short", &["saved for 4 channels"], 31, None, [4, 4]),
        wrong(Truncated, "a variance too few", &["4 running means, 3 running variances"], 32, None, [4, 3]),
        wrong(Mismatched, "a mean too few", &["3 running means, 4 running variances"], 32, None, [3, 4]),
        wrong(Mismatched, "an offset too many", &["4 running means, 5 offsets"], 32, Some(5), [4, 4]),
        wrong(Empty, "no offsets", &["4 running means, 0 offsets"], 32, Some(0), [4, 4]),
        row(Empty, "no channels", gives("nothing"), move || moved(0, None, 5, 0.1, [0, 0]).map(drop)),
        row(ZeroRows, "statistics of no values, and of one", gives("running statistics as they were"), move || {
            for n in [0, 1] {
                let (before, [mean, var]) = moved(32, Some(4), n, 0.1, [4, 4])?;
                assert_same_bits("running", &bits(&[mean, var].concat()), &before);
            }
            Ok(())
        }),
        row(Nan, "a momentum of NaN", gives("NaN: any number is taken"), move || {
            let (_, running) = moved(32, None, 5, NAN, [4, 4])?;
            assert!(running.iter().flatten().all(|x| x.to_f64().is_nan()));
            Ok(())
        }),
        row(Oversized, "a channel that was not saved", panics(&["index out of bounds"]), || {
            Saved::new(&[T::ONE; 32], 4).mean(4);
            Ok(())
        }),
        row(Truncated, "saved of another number of channels", panics(&["saved for 5 channels"]), || {
            Saved::new(&[T::ONE; 32], 5);
            Ok(())
        }),
        row(Overflow, "room for more than can be addressed", gives("the largest number"), || {
            for (n, c, l) in [(MAX, 2, 1), (2, MAX, 1), (MAX / 2, 4, 1), (1, 4, MAX), (MAX, MAX, MAX)] {
                assert_eq!(batchnorm::scratch_len::<T>(n, c, l), MAX);
            }
            assert_eq!(batchnorm::saved_len(MAX), MAX);
            Ok(())
        }),
    ]
}
