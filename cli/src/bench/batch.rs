//! Which batches are normalised, by which pass, and what that moves at least.
//!
//! # The roof of a pass
//!
//! No output is known before the last value of its channel has been read, so a pass that needs sums over a channel comes to its
//! values twice. The second time they may still be near, which depends on the shape alone: a *slab* is as much of a tensor as must
//! be gone through at a time, one channel's planes where planes lie whole (NCHW), a cache line's width of channels, 64 bytes, where
//! channels are innermost (dense, NHWC). With each tensor as large as x:
//!
//! | pass | first | then | near | not near |
//! |---|---|---|---|---|
//! | forward | read x | read x, write y | 1 read + 1 write | 2 + 1 |
//! | backward | read x, dy | read x, dy, write dx | 2 + 1 | 4 + 1 |
//! | frozen | | read x, write y | 1 + 1 | 1 + 1 |
//! | frozen-backward | | read dy, with ReLU x, write dx | 1 + 1, with ReLU 2 + 1 | the same |
//! | frozen-backward-sums | read x, dy | read dy, with ReLU x, write dx | 2 + 1 | 3 + 1, with ReLU 4 + 1 |
//!
//! *Near* are slabs of what is read first that fit in [`SHARE`] of a second-level cache, and where the tensors as a whole are
//! larger than that. Tensors that fit there as a whole never come from farther away, so both readings count.
//!
//! The least time is then that of the same sweeps over memory without arithmetic, at the rates that all threads together reach on as
//! much memory as the pass touches: a reading of what is read first and not near, and a copy where the rest is 1 read + 1 write, a
//! triad (a = b + s c) where it is 2 + 1. A last-level cache may keep a slab that is not near in this sense: then a pass over more
//! memory than it holds may take less than that.

use super::{check_memory, size};
use crate::failure::Failure;
use clap::ValueEnum;
use evenkeel::Error;
use evenkeel::kernels::Activation;
use evenkeel::simd::Element;
use std::fmt;

/// How much of a second-level cache a slab may take: the rest is for what streams by.
const SHARE: f64 = 0.6;

/// How an image lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// Whole planes.
    Nchw,
    /// Channels innermost.
    Nhwc,
}

/// What is normalised: `[n, c]`, `[n, c, l]` or an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Dense,
    Line(usize),
    Image { h: usize, w: usize, layout: Layout },
}

/// The size of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) n: usize,
    pub(crate) c: usize,
    pub(crate) form: Form,
}

/// A shape as typed, which may leave open how an image lies in memory.
#[derive(Clone, Debug)]
pub(crate) struct Typed {
    sizes: Vec<usize>,
    layout: Option<Layout>,
}

const WANTED: &str = "NxC, NxCxL or NxCxHxW, as in 64x100 or 64x64x56x56";

/// Layers of the networks that the command knows or will know, and wide ones, within the caches and beyond.
const DENSE: [[usize; 2]; 6] = [[32, 32], [64, 100], [128, 120], [1024, 256], [8192, 512], [65536, 64]];
const IMAGES: [[usize; 4]; 6] =
    [[128, 6, 28, 28], [128, 16, 10, 10], [64, 64, 56, 56], [32, 256, 14, 14], [32, 128, 28, 28], [16, 512, 7, 7]];

impl Typed {
    /// Sizes with an x between them, then `_nchw` or `_nhwc` where the layout is meant too (`_nc` and `_ncl` say nothing new).
    pub(crate) fn parse(text: &str) -> Result<Typed, String> {
        let (sizes, suffix) = text.rsplit_once('_').map_or((text, None), |(sizes, suffix)| (sizes, Some(suffix)));
        let sizes =
            sizes.split('x').map(|text| size(text, WANTED, "normalise")).collect::<Result<Vec<usize>, String>>()?;
        if !(2..=4).contains(&sizes.len()) {
            return Err(format!("expected {WANTED}"));
        }
        let layout = match (suffix, sizes.len()) {
            (None, _) | (Some("nc"), 2) | (Some("ncl"), 3) => None,
            (Some("nchw"), 4) => Some(Layout::Nchw),
            (Some("nhwc"), 4) => Some(Layout::Nhwc),
            (Some(suffix), count) => {
                let expected = ["_nc", "_ncl", "_nchw or _nhwc"][count - 2];
                return Err(format!("_{suffix} is no layout of {count} sizes; expected {expected}"));
            }
        };
        Ok(Typed { sizes, layout })
    }

    /// The batches that are meant: an image without a layout in each of `layouts`.
    pub(crate) fn batches(&self, layouts: &[Layout]) -> Vec<Batch> {
        let own = self.layout.map(|layout| vec![layout]);
        let layouts = own.as_deref().unwrap_or(layouts);
        match self.sizes[..] {
            [n, c, h, w] => layouts.iter().map(|&layout| Batch { n, c, form: Form::Image { h, w, layout } }).collect(),
            [n, c, l] => vec![Batch { n, c, form: Form::Line(l) }],
            [n, c] => vec![Batch { n, c, form: Form::Dense }],
            _ => unreachable!("two to four sizes are read"),
        }
    }

    /// What is timed if nothing is asked for.
    pub(crate) fn defaults() -> Vec<Typed> {
        let dense = DENSE.iter().map(|sizes| sizes.to_vec());
        dense.chain(IMAGES.iter().map(|sizes| sizes.to_vec())).map(|sizes| Typed { sizes, layout: None }).collect()
    }
}

impl Batch {
    /// The same as `[n, c, l]`, which covers every layout: images, channels, and neighbouring values of a channel.
    pub(crate) fn planes(self) -> [usize; 3] {
        let Batch { n, c, form } = self;
        match form {
            Form::Dense => [n, c, 1],
            Form::Line(l) => [n, c, l],
            Form::Image { h, w, layout: Layout::Nchw } => [n, c, h * w],
            Form::Image { h, w, layout: Layout::Nhwc } => [n * h * w, c, 1],
        }
    }

    /// `nc`, `ncl`, `nchw` or `nhwc`.
    pub(crate) fn layout(self) -> &'static str {
        match self.form {
            Form::Dense => "nc",
            Form::Line(_) => "ncl",
            Form::Image { layout: Layout::Nchw, .. } => "nchw",
            Form::Image { layout: Layout::Nhwc, .. } => "nhwc",
        }
    }

    /// Values of a channel, and bytes of a tensor: in f64, because nothing has been checked yet.
    fn extent<T>(self) -> (f64, f64) {
        let inner = match self.form {
            Form::Dense => 1.0,
            Form::Line(l) => l as f64,
            Form::Image { h, w, .. } => h as f64 * w as f64,
        };
        let count = self.n as f64 * inner;
        (count, count * self.c as f64 * size_of::<T>() as f64)
    }

    /// Bytes of a tensor of a batch that was checked.
    pub(crate) fn bytes<T>(self) -> usize {
        self.planes().iter().product::<usize>() * size_of::<T>()
    }

    /// Refuses what the memory of this machine is not made for.
    pub(crate) fn check<T: Element>(self) -> Result<(), Failure> {
        let (count, tensor) = self.extent::<T>();
        // x, dy, y and dx; as much as three of them for the bandwidth; and a channel in f64 for the reference, in and out. What is
        // saved of each channel and scratch are smaller than a tensor, unless there are hardly any rows.
        let small = (self.c as f64) * 64.0 * size_of::<T>() as f64;
        check_memory(
            self,
            "a batch whose tensors, and what they are compared with,",
            7.0 * tensor + 64.0 * count + small,
        )
    }

    /// Bytes of a slab.
    fn slab<T>(self) -> usize {
        let [n, c, l] = self.planes();
        let line = if l > 1 { size_of::<T>() } else { (c * size_of::<T>()).min(64) };
        n * l * line
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.n, self.c)?;
        match self.form {
            Form::Dense => {}
            Form::Line(l) => write!(f, "x{l}")?,
            Form::Image { h, w, .. } => write!(f, "x{h}x{w}")?,
        }
        write!(f, "_{}", self.layout())
    }
}

/// Which way through a normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pass {
    /// Training: statistics of the batch.
    Forward,
    /// All gradients of that.
    Backward,
    /// Evaluation: statistics that are given.
    Frozen,
    /// The gradient of x alone when statistics are given.
    FrozenBackward,
    /// All gradients when statistics are given.
    FrozenBackwardSums,
}

impl Pass {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::Backward => "backward",
            Pass::Frozen => "frozen",
            Pass::FrozenBackward => "frozen-backward",
            Pass::FrozenBackwardSums => "frozen-backward-sums",
        }
    }

    pub(crate) fn is_frozen(self) -> bool {
        matches!(self, Pass::Frozen | Pass::FrozenBackward | Pass::FrozenBackwardSums)
    }

    pub(crate) fn is_backward(self) -> bool {
        matches!(self, Pass::Backward | Pass::FrozenBackward | Pass::FrozenBackwardSums)
    }
}

/// What lines call a pass: `bn_fwd`, `bn_relu_bwd`, `bn_relu_eval` and so on.
fn case(pass: Pass, activation: Activation) -> String {
    let relu = if activation == Activation::Relu { "_relu" } else { "" };
    let pass = match pass {
        Pass::Forward => "fwd",
        Pass::Backward => "bwd",
        Pass::Frozen => "eval",
        Pass::FrozenBackward => "eval_bwd",
        Pass::FrozenBackwardSums => "eval_bwd_sums",
    };
    format!("bn{relu}_{pass}")
}

/// A pass over a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Job {
    pub(crate) batch: Batch,
    pub(crate) pass: Pass,
    pub(crate) activation: Activation,
}

/// What a pass moves at least, in tensors; it writes one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Traffic {
    /// Read before anything is written.
    pub(crate) first: usize,
    /// Read while one is written: 1 or 2.
    pub(crate) then: usize,
    /// How many tensors it touches.
    pub(crate) touched: usize,
}

impl Traffic {
    pub(crate) fn reads(self) -> usize {
        self.first + self.then
    }
}

impl Job {
    /// What lines call it.
    pub(crate) fn case(self) -> String {
        case(self.pass, self.activation)
    }

    /// The job of a line, or `None` where it is of no such case, or in a layout that is none of ours.
    pub(crate) fn of_line(case: &str, shape: &str) -> Result<Option<Job>, String> {
        let modes = [Activation::Identity, Activation::Relu];
        let mut known = Pass::value_variants().iter().flat_map(|&pass| modes.map(|activation| (pass, activation)));
        let Some((pass, activation)) = known.find(|&(pass, activation)| self::case(pass, activation) == case) else {
            return Ok(None);
        };
        let sizes = shape.split('_').next().unwrap_or_default();
        Typed::parse(sizes)?;
        let Ok(typed) = Typed::parse(shape) else { return Ok(None) };
        match typed.batches(&[])[..] {
            [batch] => Ok(Some(Job { batch, pass, activation })),
            _ => Err("an image needs _nchw or _nhwc behind its sizes".to_string()),
        }
    }

    /// What the pass moves at least, with second-level caches of `l2` bytes.
    pub(crate) fn traffic<T: Element>(self, l2: usize) -> Traffic {
        // The mask of ReLU is made of x.
        let x = usize::from(self.activation == Activation::Relu);
        let (first, then) = match self.pass {
            Pass::Forward => (1, 1),
            Pass::Backward => (2, 2),
            Pass::Frozen => (0, 1),
            Pass::FrozenBackward => (0, 1 + x),
            Pass::FrozenBackwardSums => (2, 1 + x),
        };
        let fits = |bytes: usize| bytes as f64 <= SHARE * l2 as f64;
        let touched = first.max(then) + 1;
        let is_near = fits(first * self.batch.slab::<T>()) && !fits(touched * self.batch.bytes::<T>());
        let (first, then) = if is_near { (0, first.max(then)) } else { (first, then) };
        Traffic { first, then, touched }
    }

    /// Refuses what cannot be normalised.
    pub(crate) fn check<T: Element>(self) -> Result<(), Failure> {
        self.batch.check::<T>()?;
        let [n, _, l] = self.batch.planes();
        if n * l > 1 || self.pass.is_frozen() {
            return Ok(());
        }
        let expected = format!("two values of each channel or more for --pass {}", self.pass.name());
        Err(Error::Invalid { what: "--shape".to_string(), value: self.batch.to_string(), expected }.into())
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.batch, self.pass.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Layout; 2] = [Layout::Nchw, Layout::Nhwc];

    fn job(shape: &str, pass: Pass, activation: Activation) -> Job {
        Job { batch: Typed::parse(shape).unwrap().batches(&BOTH[..1])[0], pass, activation }
    }

    #[test]
    fn shapes_as_typed() {
        let names = |text: &str, layouts: &[Layout]| {
            let batches = Typed::parse(text).unwrap().batches(layouts);
            batches.iter().map(Batch::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names("64x100", &BOTH), "64x100_nc");
        assert_eq!(names("8x6x40", &BOTH), "8x6x40_ncl");
        assert_eq!(names("2x3x4x5", &BOTH), "2x3x4x5_nchw 2x3x4x5_nhwc");
        assert_eq!(names("2x3x4x5", &BOTH[1..]), "2x3x4x5_nhwc");
        assert_eq!(names("2x3x4x5_nchw", &BOTH[1..]), "2x3x4x5_nchw");
        for (wrong, word) in [
            ("", "\"\""),
            ("32", "NxC"),
            ("1x2x3x4x5", "NxCxHxW"),
            ("32x0", "nothing to normalise"),
            ("axb", "\"a\""),
            ("-1x2", "\"-1\""),
            ("2x3x4x5_nc", "_nhwc"),
            // Channels innermost would be another layout in memory.
            ("8x6x40_nhwc", "3 sizes; expected _ncl"),
            ("64x100_nhwc", "2 sizes; expected _nc"),
            ("2x3x4x5_", "_nhwc"),
            ("2x3_nChw16c", "_nChw16c"),
            ("99999999999999999999x1", "addressed"),
        ] {
            let error = Typed::parse(wrong).unwrap_err();
            assert!(error.contains(word), "{wrong}: {error}");
        }
        let all: Vec<Batch> = Typed::defaults().iter().flat_map(|typed| typed.batches(&BOTH)).collect();
        assert_eq!(all.len(), DENSE.len() + 2 * IMAGES.len());
    }

    #[test]
    fn layouts_by_hand() {
        let planes = |text: &str| Typed::parse(text).unwrap().batches(&[])[0].planes();
        assert_eq!(planes("7x3"), [7, 3, 1]);
        assert_eq!(planes("7x3x4"), [7, 3, 4]);
        assert_eq!(planes("7x3x4x5_nchw"), [7, 3, 20]);
        assert_eq!(planes("7x3x4x5_nhwc"), [140, 3, 1]);
    }

    /// With a second-level cache of 1 MiB, of which 629 145 bytes count.
    #[test]
    fn traffic_follows_from_the_shape() {
        let (relu, plain) = (Activation::Relu, Activation::Identity);
        let reads = |shape, pass, activation| job(shape, pass, activation).traffic::<f32>(1 << 20).reads();
        for (shape, forward, backward) in [
            ("64x100", 2, 4),            // all of it fits
            ("8192x512", 1, 4),          // a slab of 512 KiB fits, two do not
            ("1024x256", 1, 2),          // two of 64 KiB fit
            ("65536x64", 2, 4),          // a slab of 4 MiB does not
            ("64x64x56x56_nchw", 2, 4),  // planes of a channel: 784 KiB
            ("32x128x28x28_nchw", 1, 2), // planes of a channel: 98 KiB
            ("32x128x28x28_nhwc", 2, 4), // a slab of 1.5 MiB
            ("32x256x14x14_nhwc", 1, 4), // a slab of 392 KiB
            ("128x16x10x10_nchw", 1, 2),
            ("12000x6x2", 1, 2), // the planes of a channel have 94 KiB
        ] {
            let found = (reads(shape, Pass::Forward, relu), reads(shape, Pass::Backward, relu));
            assert_eq!(found, (forward, backward), "{shape}");
            assert_eq!(reads(shape, Pass::Frozen, plain), 1);
            let frozen = [plain, relu].map(|activation| reads(shape, Pass::FrozenBackward, activation));
            assert_eq!(frozen, [1, 2]);
        }
        let sums = |shape, activation| reads(shape, Pass::FrozenBackwardSums, activation);
        assert_eq!([sums("1024x256", plain), sums("1024x256", relu)], [2, 2]);
        assert_eq!([sums("65536x64", plain), sums("65536x64", relu)], [3, 4]);
        // Fewer channels than a cache line holds: the slab is the tensor, of 24 bytes a row.
        assert_eq!(reads("20000x6", Pass::Forward, plain), 1);
        assert_eq!(reads("30000x6", Pass::Forward, plain), 2);
        // In f64 twice as much: a channel's planes no longer fit.
        assert_eq!(job("8x64x112x112_nchw", Pass::Forward, relu).traffic::<f64>(1 << 20).reads(), 2);
        assert_eq!(job("8x64x112x112_nchw", Pass::Forward, relu).traffic::<f32>(1 << 20).reads(), 1);
        let whole = |shape, pass, activation| job(shape, pass, activation).traffic::<f32>(1 << 20);
        assert_eq!(whole("64x100", Pass::Backward, relu), Traffic { first: 2, then: 2, touched: 3 });
        assert_eq!(whole("64x100", Pass::FrozenBackward, plain), Traffic { first: 0, then: 1, touched: 2 });
        assert_eq!(whole("1024x256", Pass::FrozenBackwardSums, plain), Traffic { first: 0, then: 2, touched: 3 });
    }

    #[test]
    fn lines_name_the_job() {
        for activation in [Activation::Identity, Activation::Relu] {
            for &pass in Pass::value_variants() {
                for shape in ["64x100_nc", "8x6x40_ncl", "2x3x4x5_nhwc"] {
                    let job = job(shape, pass, activation);
                    assert_eq!(Job::of_line(&job.case(), &job.batch.to_string()).unwrap(), Some(job));
                }
            }
        }
        for (case, shape) in
            [("gemm", "8x8x8"), ("bn_accuracy", "8x8"), ("bn_fwd", "8x16x4x4_nChw16c"), ("bn_relu", "")]
        {
            assert_eq!(Job::of_line(case, shape).unwrap(), None, "{case} {shape}");
        }
        assert!(Job::of_line("bn_fwd", "8x16x4x4").unwrap_err().contains("_nhwc"));
        assert!(Job::of_line("bn_fwd", "8x0_nc").unwrap_err().contains("nothing"));
    }

    #[test]
    fn what_cannot_be_normalised_is_refused() {
        let check = |shape, pass| job(shape, pass, Activation::Relu).check::<f32>().map_err(|error| error.to_string());
        assert!(check("1x8", Pass::Forward).unwrap_err().contains("two values of each channel"));
        assert!(check("1x8x1x1_nhwc", Pass::Backward).unwrap_err().contains("--pass backward"));
        check("1x8", Pass::Frozen).unwrap();
        check("1x8x1x2_nhwc", Pass::Forward).unwrap();
        for shape in ["4000000000x4000000000", "4000000000x4000000000x4000000000x4000000000_nhwc", "1x99999999999"] {
            assert!(check(shape, Pass::Frozen).unwrap_err().contains("GiB"), "{shape}");
        }
    }
}
