//! Drawn digits: the data set that is there before anything has been downloaded.
//!
//! A seeded generator writes the digits 0 to 9 with a pen, one image at a time, in the form that MNIST has: 28x28
//! bytes, light ink on black, the digit in a square of about 20 pixels with its centre of mass in the middle. Nothing
//! is stored; twelve thousand images take a fraction of a second to make.
//!
//! # How an image is made
//!
//! 1. **Skeleton.** Each class has a few ways to be written (a 7 with and without a bar, a 4 open or closed, a 2 with
//!    or without a loop). A way is a list of strokes, a stroke a list of points in a unit square, joined by
//!    Catmull-Rom curves; a point written twice is a corner.
//! 2. **Hand.** Every point is moved a little. Each digit then gets its own slant, rotation, aspect and thickness of
//!    pen, and an elastic distortion: a smooth random displacement, a cubic B-spline over the square, which bends
//!    strokes without breaking them. How unsteady a hand is varies from digit to digit, so that most images are plain
//!    and some are hard even for a person.
//! 3. **Frame.** The strokes are scaled into the square and moved until their centre of mass is central, give or take
//!    a pixel, as MNIST's were.
//! 4. **Ink.** A pixel's value falls from full to none across the edge of the pen, by its distance from the nearest
//!    piece of stroke. Some digits lose a spot of ink, some get a stray stroke, some are faint, some are grainy.
//!
//! # Same bits everywhere
//!
//! Only additions, multiplications, divisions and square roots are used, which IEEE 754 rounds the same on every
//! machine. A rotation by a small angle a is written through t = tan(a / 2): its cosine is (1 - t^2) / (1 + t^2), its
//! sine 2t / (1 + t^2). So a seed names one data set, for ever; a test holds a checksum of it.
//!
//! # How hard it is
//!
//! Training and validation images come from the same distribution. The nearest class mean is right for about three
//! images in four. A network with two hidden layers of 32 is right for about nine in ten, and trained without
//! normalisation at a high learning rate it overfits ten thousand images visibly within ten epochs. All of this is
//! close to what the first ten thousand images of MNIST do.

use super::Images;
use crate::rng::Rng;

/// The seed of the data set that is meant when nobody names another one.
pub const SEED: u64 = 1;

/// Rows and columns of an image.
pub const SIDE: usize = 28;

/// Images for training in [`digits`].
const TRAIN: usize = 10_000;

/// Images for validation in [`digits`].
const VALIDATION: usize = 2_000;

/// The drawn data set of a seed: 10,000 images to train on and 2,000 to validate with.
///
/// # Examples
/// ```
/// use evenkeel::data::digits;
/// let (train, validation) = digits::digits(digits::SEED);
/// assert_eq!((train.len(), validation.len()), (10_000, 2_000));
/// assert_eq!((train.height(), train.width(), train.classes()), (28, 28, 10));
/// ```
pub fn digits(seed: u64) -> (Images, Images) {
    generate(seed, TRAIN, VALIDATION)
}

/// As [`digits`], with as many images as asked for.
///
/// Each class has as many images as any other, or one more. The two sets are drawn from separate streams, so the size
/// of one does not change the other.
///
/// # Panics
/// If one of the sets does not fit in memory: an image takes 784 bytes.
pub fn generate(seed: u64, train: usize, validation: usize) -> (Images, Images) {
    let set = |name, count| draw_set(&mut Rng::new(seed, name), count);
    (set("digits: train", train), set("digits: validation", validation))
}

/// Draws `count` images, the classes in a random order.
fn draw_set(rng: &mut Rng, count: usize) -> Images {
    // Asked for first: an allocation that is refused ends the process.
    let size = count.checked_mul(SIDE * SIDE).filter(|&size| Vec::<u8>::new().try_reserve_exact(size).is_ok());
    let size = size.unwrap_or_else(|| panic!("digits: {count} images of {SIDE}x{SIDE} pixels do not fit in memory"));
    let mut labels: Vec<u8> = (0..10).cycle().take(count).collect();
    rng.shuffle(&mut labels);
    let mut pixels = vec![0; size];
    let mut canvas = Canvas::new();
    let mut strokes = Vec::new();
    for (&label, image) in labels.iter().zip(pixels.chunks_exact_mut(SIDE * SIDE)) {
        draw_digit(usize::from(label), rng, &mut strokes, &mut canvas, image);
    }
    Images::new(pixels, labels, SIDE, SIDE, 10).expect("one label below 10 per 28x28 pixels")
}

/// A place; x grows to the right and y downwards.
type Point = [f64; 2];

/// One way to write a class: its share of the class's images in tenths, and its strokes in a unit square.
type Way = (u64, &'static [&'static [Point]]);

/// The ways to write each class; their shares add up to ten. A line is a stroke, or half of a long one.
#[rustfmt::skip]
const WAYS: [&[Way]; 10] = [
    // 0: a closed oval, one whose ends cross at the top, one left open.
    &[
        (5, &[&[[0.60, 0.02], [0.24, 0.14], [0.12, 0.60], [0.46, 1.00], [0.84, 0.70], [0.82, 0.22], [0.50, 0.02]]]),
        (3, &[&[[0.70, 0.14], [0.34, 0.06], [0.12, 0.54], [0.38, 1.00], [0.78, 0.76], [0.80, 0.22], [0.40, 0.00]]]),
        (2, &[&[[0.60, 0.02], [0.22, 0.22], [0.16, 0.72], [0.46, 1.00], [0.82, 0.70], [0.82, 0.28], [0.66, 0.12]]]),
    ],
    // 1: a bare stem, a stem with a flag, a flag and a foot.
    &[
        (6, &[&[[0.54, 0.00], [0.50, 0.48], [0.46, 1.00]]]),
        (2, &[&[[0.28, 0.24], [0.42, 0.14], [0.54, 0.00], [0.54, 0.00], [0.52, 0.50], [0.50, 1.00]]]),
        (2, &[&[[0.26, 0.26], [0.42, 0.14], [0.54, 0.00], [0.54, 0.00], [0.52, 0.50], [0.50, 0.98]],
             &[[0.22, 1.00], [0.50, 0.98], [0.80, 0.98]]]),
    ],
    // 2: a corner at the foot, a loop at the foot, a round hook with a flat foot.
    &[
        (4, &[&[[0.14, 0.24], [0.30, 0.04], [0.60, 0.02], [0.76, 0.24], [0.62, 0.54], [0.34, 0.80], [0.12, 0.98],
               [0.12, 0.98], [0.46, 0.96], [0.88, 0.96]]]),
        (4, &[&[[0.14, 0.18], [0.38, 0.00], [0.68, 0.12], [0.68, 0.42], [0.46, 0.76], [0.22, 0.98], [0.06, 0.90],
               [0.18, 0.76], [0.42, 0.86], [0.66, 0.98], [0.92, 0.88]]]),
        (2, &[&[[0.18, 0.34], [0.24, 0.08], [0.54, 0.00], [0.80, 0.18], [0.74, 0.48], [0.44, 0.74], [0.10, 0.94],
               [0.10, 0.94], [0.40, 0.90], [0.66, 0.98], [0.90, 1.00]]]),
    ],
    // 3: two bows with a corner between them, two bows with a small loop, a flat top.
    &[
        (5, &[&[[0.16, 0.12], [0.44, 0.00], [0.74, 0.12], [0.70, 0.36], [0.38, 0.48], [0.38, 0.48], [0.74, 0.58],
               [0.82, 0.82], [0.52, 1.00], [0.14, 0.90]]]),
        (3, &[&[[0.18, 0.08], [0.52, 0.00], [0.74, 0.18], [0.54, 0.42], [0.34, 0.46], [0.44, 0.54], [0.60, 0.50],
               [0.80, 0.68], [0.66, 0.94], [0.34, 1.00], [0.10, 0.90]]]),
        (2, &[&[[0.16, 0.04], [0.46, 0.02], [0.76, 0.02], [0.76, 0.02], [0.58, 0.22], [0.42, 0.40], [0.42, 0.40],
               [0.74, 0.52], [0.80, 0.78], [0.50, 1.00], [0.14, 0.90]]]),
    ],
    // 4: open at the top, closed like the printed one, written without lifting the pen.
    &[
        (6, &[&[[0.22, 0.06], [0.16, 0.30], [0.12, 0.52], [0.12, 0.52], [0.42, 0.56], [0.80, 0.50]],
             &[[0.74, 0.02], [0.68, 0.44], [0.60, 1.00]]]),
        (2, &[&[[0.66, 0.00], [0.36, 0.32], [0.08, 0.62], [0.08, 0.62], [0.46, 0.62], [0.90, 0.60]],
             &[[0.66, 0.00], [0.64, 0.46], [0.62, 1.00]]]),
        (2, &[&[[0.24, 0.02], [0.14, 0.32], [0.18, 0.52], [0.46, 0.50], [0.76, 0.28], [0.82, 0.04], [0.82, 0.04],
               [0.72, 0.48], [0.66, 1.00]]]),
    ],
    // 5: belly first and the bar after it, one stroke with corners, one round stroke.
    &[
        (4, &[&[[0.28, 0.06], [0.24, 0.40], [0.24, 0.40], [0.56, 0.40], [0.78, 0.64], [0.60, 0.94], [0.14, 0.96]],
             &[[0.28, 0.06], [0.54, 0.04], [0.86, 0.00]]]),
        (4, &[&[[0.84, 0.02], [0.56, 0.02], [0.30, 0.06], [0.30, 0.06], [0.22, 0.44], [0.22, 0.44], [0.58, 0.44],
               [0.76, 0.66], [0.60, 0.92], [0.34, 1.00], [0.12, 0.90]]]),
        (2, &[&[[0.86, 0.06], [0.58, 0.00], [0.34, 0.14], [0.34, 0.36], [0.60, 0.54], [0.70, 0.76], [0.48, 0.98],
               [0.16, 0.92]]]),
    ],
    // 6: a long back with a round belly, a belly closed late, a narrow one.
    &[
        (5, &[&[[0.66, 0.00], [0.36, 0.24], [0.18, 0.60], [0.28, 0.94], [0.58, 0.98], [0.76, 0.76], [0.60, 0.54],
               [0.36, 0.62], [0.22, 0.82]]]),
        (3, &[&[[0.42, 0.00], [0.24, 0.34], [0.18, 0.72], [0.36, 0.98], [0.68, 0.92], [0.78, 0.66], [0.54, 0.54],
               [0.28, 0.72]]]),
        (2, &[&[[0.74, 0.04], [0.46, 0.10], [0.24, 0.46], [0.26, 0.84], [0.48, 1.00], [0.64, 0.88], [0.58, 0.70],
               [0.40, 0.70], [0.28, 0.84]]]),
    ],
    // 7: plain, with a bar through the stem, with a serif at its left.
    &[
        (6, &[&[[0.12, 0.10], [0.46, 0.06], [0.84, 0.04], [0.84, 0.04], [0.70, 0.34], [0.54, 0.66], [0.42, 1.00]]]),
        (2, &[&[[0.12, 0.08], [0.48, 0.06], [0.86, 0.02], [0.86, 0.02], [0.66, 0.38], [0.50, 0.70], [0.40, 1.00]],
             &[[0.30, 0.54], [0.56, 0.50], [0.80, 0.48]]]),
        (2, &[&[[0.10, 0.28], [0.16, 0.06], [0.16, 0.06], [0.48, 0.08], [0.74, 0.02], [0.82, 0.14], [0.68, 0.44],
               [0.60, 0.70], [0.56, 1.00]]]),
    ],
    // 8: one stroke that crosses itself, two rings, one stroke left open at the top.
    &[
        (5, &[&[[0.72, 0.12], [0.46, 0.00], [0.24, 0.18], [0.40, 0.42], [0.66, 0.60], [0.72, 0.84], [0.46, 1.00],
               [0.22, 0.84], [0.34, 0.60], [0.64, 0.40], [0.76, 0.16], [0.58, 0.02]]]),
        (2, &[&[[0.50, 0.46], [0.28, 0.34], [0.28, 0.10], [0.52, 0.00], [0.74, 0.12], [0.72, 0.36], [0.50, 0.46]],
             &[[0.50, 0.46], [0.22, 0.62], [0.22, 0.88], [0.50, 1.00], [0.78, 0.88], [0.78, 0.62], [0.50, 0.46]]]),
        (3, &[&[[0.80, 0.06], [0.50, 0.04], [0.26, 0.16], [0.36, 0.40], [0.58, 0.62], [0.56, 0.88], [0.34, 1.00],
               [0.20, 0.84], [0.40, 0.58], [0.66, 0.34], [0.84, 0.12]]]),
    ],
    // 9: a ring and a straight stem, a ring and a hooked tail, one stroke with a small ring.
    &[
        (5, &[&[[0.74, 0.14], [0.46, 0.02], [0.20, 0.20], [0.24, 0.44], [0.50, 0.46], [0.74, 0.16], [0.74, 0.16],
               [0.70, 0.56], [0.62, 1.00]]]),
        (3, &[&[[0.76, 0.20], [0.54, 0.00], [0.26, 0.14], [0.24, 0.40], [0.52, 0.50], [0.76, 0.24], [0.78, 0.56],
               [0.64, 0.92], [0.40, 1.00], [0.20, 0.90]]]),
        (2, &[&[[0.66, 0.12], [0.48, 0.04], [0.28, 0.18], [0.36, 0.36], [0.58, 0.32], [0.66, 0.12], [0.64, 0.40],
               [0.52, 0.72], [0.40, 1.00]]]),
    ],
];

/// A place on a stroke, with the pen's radius there.
#[derive(Clone, Copy)]
struct Mark {
    at: Point,
    radius: f64,
}

/// Draws one digit of class `class` into `image`; `strokes` and `canvas` are workspaces.
fn draw_digit(class: usize, rng: &mut Rng, strokes: &mut Vec<Vec<Mark>>, canvas: &mut Canvas, image: &mut [u8]) {
    write_strokes(pick_way(class, rng), rng, strokes);
    frame(rng, strokes);
    canvas.clear();
    let softness = rng.range(1.1, 1.7);
    for stroke in strokes.iter() {
        canvas.stroke(stroke, softness);
    }
    blemish(rng, strokes, canvas);
    develop(rng, canvas, image);
}

/// One of the ways to write a class, each as often as its share says.
fn pick_way(class: usize, rng: &mut Rng) -> &'static [&'static [Point]] {
    let mut drawn = rng.below(10);
    for &(share, strokes) in WAYS[class] {
        if drawn < share {
            return strokes;
        }
        drawn -= share;
    }
    unreachable!("the shares of a class add up to ten")
}

/// A normal draw, cut at two and a half standard deviations: far tails are scribbles, not digits.
fn wobble(rng: &mut Rng, deviation: f64) -> f64 {
    deviation * rng.normal().clamp(-2.5, 2.5)
}

/// Step 1 and 2: the curves of one digit in one hand, in units of the digit's height.
fn write_strokes(way: &[&[Point]], rng: &mut Rng, strokes: &mut Vec<Vec<Mark>>) {
    // Most hands are steady and some are not: the square of a uniform draw favours the steady ones.
    let unsteady = rng.uniform();
    let unsteady = UNSTEADY.0 + UNSTEADY.1 * unsteady * unsteady;
    let bend = Bend::draw(rng, BEND * unsteady);
    let turn = Affine::draw(rng);
    let pen = (PEN.0 + wobble(rng, PEN.1)).max(PEN.2);

    strokes.resize_with(way.len(), Vec::new);
    let mut keys: Vec<Point> = Vec::new();
    for (points, marks) in way.iter().zip(strokes) {
        keys.clear();
        for (i, &[x, y]) in points.iter().enumerate() {
            let corner = i > 0 && points[i - 1] == points[i];
            keys.push(if corner {
                keys[i - 1]
            } else {
                [x + wobble(rng, JITTER * unsteady), y + wobble(rng, JITTER * unsteady)]
            });
        }
        marks.clear();
        spline(&keys, |at| marks.push(Mark { at: turn.apply(bend.apply(at)), radius: 0.0 }));
        // The pressure changes along the stroke, in a straight line from its start to its end.
        let (start, end) = (pen * (1.0 + wobble(rng, 0.12)), pen * (1.0 + wobble(rng, 0.12)));
        let last = (marks.len() - 1) as f64;
        for (i, mark) in marks.iter_mut().enumerate() {
            mark.radius = start + (end - start) * (i as f64 / last);
        }
    }
}

/// How unsteady a hand is: at least, and how much more at most.
const UNSTEADY: (f64, f64) = (0.6, 1.6);
/// Standard deviation of a key point, at unsteadiness 1.
const JITTER: f64 = 0.026;
/// Standard deviation of the elastic distortion's nodes, at unsteadiness 1.
const BEND: f64 = 0.12;
/// Radius of the pen in pixels: mean, standard deviation, least.
const PEN: (f64, f64, f64) = (1.4, 0.38, 0.75);

/// Pieces in which the curve between two key points is drawn.
const PIECES: usize = 5;

/// Walks a Catmull-Rom curve through `keys`; two equal keys in a row are a corner.
///
/// Between p1 and p2, with tangents (p2 - p0) / 2 and (p3 - p1) / 2, the curve is the cubic Hermite polynomial.
fn spline(keys: &[Point], mut visit: impl FnMut(Point)) {
    visit(keys[0]);
    for i in 0..keys.len() - 1 {
        let (p1, p2) = (keys[i], keys[i + 1]);
        if p1 == p2 {
            continue;
        }
        let p0 = keys[i.saturating_sub(1)];
        let p3 = keys[(i + 2).min(keys.len() - 1)];
        for piece in 1..=PIECES {
            let t = piece as f64 / PIECES as f64;
            let (t2, t3) = (t * t, t * t * t);
            let mut at = [0.0; 2];
            for axis in 0..2 {
                let (m1, m2) = (0.5 * (p2[axis] - p0[axis]), 0.5 * (p3[axis] - p1[axis]));
                at[axis] = (2.0 * t3 - 3.0 * t2 + 1.0) * p1[axis]
                    + (t3 - 2.0 * t2 + t) * m1
                    + (3.0 * t2 - 2.0 * t3) * p2[axis]
                    + (t3 - t2) * m2;
            }
            visit(at);
        }
    }
}

/// An elastic distortion of the unit square: a displacement that is a uniform cubic B-spline over 2x2 cells, so that
/// it has two continuous derivatives and bends a stroke without breaking it.
struct Bend {
    nodes: [[Point; CELLS + 3]; CELLS + 3],
}

/// Cells of the distortion's grid along each side.
const CELLS: usize = 2;

impl Bend {
    /// Draws the displacements of the nodes, each coordinate with this standard deviation. A point's displacement is a
    /// weighted mean of sixteen nodes and has about half of it.
    fn draw(rng: &mut Rng, deviation: f64) -> Self {
        let mut nodes = [[[0.0; 2]; CELLS + 3]; CELLS + 3];
        for node in nodes.as_flattened_mut() {
            *node = [wobble(rng, deviation), wobble(rng, deviation)];
        }
        Bend { nodes }
    }

    /// Where a point goes. Beyond the square the border's displacement goes on.
    fn apply(&self, [x, y]: Point) -> Point {
        let ((column, across), (row, down)) = (Self::cell(x), Self::cell(y));
        let mut moved = [x, y];
        for (nodes, v) in self.nodes[row..].iter().zip(down) {
            for (node, u) in nodes[column..].iter().zip(across) {
                moved[0] += u * v * node[0];
                moved[1] += u * v * node[1];
            }
        }
        moved
    }

    /// The first of the four nodes that a coordinate feels, and their weights, which add up to one.
    fn cell(coordinate: f64) -> (usize, [f64; 4]) {
        let scaled = (CELLS as f64 * coordinate).clamp(0.0, CELLS as f64);
        let first = (1..CELLS).filter(|&cell| scaled >= cell as f64).count();
        let t = scaled - first as f64;
        let (s, t2, t3) = (1.0 - t, t * t, t * t * t);
        (first, [s * s * s / 6.0, (3.0 * t3 - 6.0 * t2 + 4.0) / 6.0, (3.0 * (t + t2 - t3) + 1.0) / 6.0, t3 / 6.0])
    }
}

/// A linear map of the plane: aspect, then slant, then rotation.
struct Affine {
    rows: [Point; 2],
}

impl Affine {
    fn draw(rng: &mut Rng) -> Self {
        let aspect = 0.86 + wobble(rng, 0.15);
        let slant = 0.18 + wobble(rng, SLANT);
        let half = wobble(rng, TURN);
        let (cos, sin) = ((1.0 - half * half) / (1.0 + half * half), 2.0 * half / (1.0 + half * half));
        // x' = aspect x - slant y leans the top to the right, since y grows downwards.
        Affine { rows: [[cos * aspect, -cos * slant - sin], [sin * aspect, cos - sin * slant]] }
    }

    fn apply(&self, [x, y]: Point) -> Point {
        let (x, y) = (x - 0.5, y - 0.5);
        self.rows.map(|[a, b]| a * x + b * y)
    }
}

/// Standard deviation of the slant, as the tangent of its angle.
const SLANT: f64 = 0.23;
/// Standard deviation of the tangent of half the rotation's angle.
const TURN: f64 = 0.08;

/// Step 3: scales the strokes into a square of about 20 pixels and puts their centre of mass near the image's middle.
fn frame(rng: &mut Rng, strokes: &mut [Vec<Mark>]) {
    let (mut low, mut high) = ([f64::MAX; 2], [f64::MIN; 2]);
    for mark in strokes.iter().flatten() {
        for axis in 0..2 {
            low[axis] = low[axis].min(mark.at[axis]);
            high[axis] = high[axis].max(mark.at[axis]);
        }
    }
    let pen = strokes[0][0].radius;
    let size = (19.6 + wobble(rng, 0.7) - 2.0 * pen).max(8.0);
    let scale = size / (high[0] - low[0]).max(high[1] - low[1]);

    // A piece of stroke weighs its length times its width.
    let (mut mass, mut moment) = (0.0, [0.0; 2]);
    for stroke in strokes.iter() {
        for pair in stroke.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            let (dx, dy) = (b.at[0] - a.at[0], b.at[1] - a.at[1]);
            let weight = (dx * dx + dy * dy).sqrt() * (a.radius + b.radius);
            mass += weight;
            for axis in 0..2 {
                moment[axis] += weight * 0.5 * (a.at[axis] + b.at[axis]);
            }
        }
    }
    let middle = SIDE as f64 / 2.0;
    let shift = [wobble(rng, SHIFT), wobble(rng, SHIFT)];
    for mark in strokes.iter_mut().flatten() {
        for axis in 0..2 {
            mark.at[axis] = (mark.at[axis] - moment[axis] / mass) * scale + middle + shift[axis];
        }
    }
}

/// Standard deviation in pixels of the centre of mass.
const SHIFT: f64 = 0.7;

/// Ink on a square of pixels, 0 to 1.
struct Canvas {
    ink: [[f64; SIDE]; SIDE],
}

impl Canvas {
    fn new() -> Self {
        Canvas { ink: [[0.0; SIDE]; SIDE] }
    }

    fn clear(&mut self) {
        self.ink = [[0.0; SIDE]; SIDE];
    }

    /// Calls `change` for each pixel whose centre may lie within `reach` of the box from `low` to `high`.
    fn near(&mut self, low: Point, high: Point, reach: f64, mut change: impl FnMut(Point, &mut f64)) {
        let [columns, rows] = [0, 1].map(|axis| pixels_between(low[axis] - reach, high[axis] + reach));
        for row in rows {
            for column in columns.clone() {
                change([column as f64 + 0.5, row as f64 + 0.5], &mut self.ink[row][column]);
            }
        }
    }

    /// Step 4: draws a stroke. Ink falls from full to none over `softness` pixels across the pen's edge.
    fn stroke(&mut self, marks: &[Mark], softness: f64) {
        for pair in marks.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            let along = [b.at[0] - a.at[0], b.at[1] - a.at[1]];
            let squared = along[0] * along[0] + along[1] * along[1];
            let inverse = if squared > 0.0 { 1.0 / squared } else { 0.0 };
            let outer = 0.5 * (a.radius + b.radius) + 0.5 * softness;
            let low = [a.at[0].min(b.at[0]), a.at[1].min(b.at[1])];
            let high = [a.at[0].max(b.at[0]), a.at[1].max(b.at[1])];
            self.near(low, high, outer, |[x, y], ink| {
                let (px, py) = (x - a.at[0], y - a.at[1]);
                let t = ((px * along[0] + py * along[1]) * inverse).clamp(0.0, 1.0);
                let (dx, dy) = (px - t * along[0], py - t * along[1]);
                let distance = dx * dx + dy * dy;
                if distance < outer * outer {
                    *ink = ink.max(((outer - distance.sqrt()) / softness).min(1.0));
                }
            });
        }
    }

    /// Multiplies the ink in a disc by `keep` in its middle, fading to 1 at its rim.
    fn fade(&mut self, centre: Point, radius: f64, keep: f64) {
        self.near(centre, centre, radius, |[x, y], ink| {
            let (dx, dy) = (x - centre[0], y - centre[1]);
            let distance = (dx * dx + dy * dy) / (radius * radius);
            if distance < 1.0 {
                *ink *= keep + (1.0 - keep) * distance * distance;
            }
        });
    }
}

/// The pixels of a row or column whose centres lie between two coordinates.
fn pixels_between(low: f64, high: f64) -> std::ops::Range<usize> {
    let side = SIDE as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=28 first")]
    let bound = |coordinate: f64| (coordinate + 0.5).clamp(0.0, side) as usize;
    bound(low)..bound(high)
}

/// A random place on the strokes.
fn some_mark(rng: &mut Rng, strokes: &[Vec<Mark>]) -> Mark {
    let stroke = &strokes[rng.index(strokes.len())];
    stroke[rng.index(stroke.len())]
}

/// What goes wrong on paper: a spot without ink, a stray stroke.
fn blemish(rng: &mut Rng, strokes: &[Vec<Mark>], canvas: &mut Canvas) {
    while rng.uniform() < SPOTS {
        let centre = some_mark(rng, strokes).at;
        canvas.fade(centre, rng.range(1.5, 4.0), rng.range(0.0, 0.6));
    }
    if rng.uniform() < STRAYS {
        let start = [rng.range(3.0, 25.0), rng.range(3.0, 25.0)];
        let end = [start[0] + wobble(rng, 3.5), start[1] + wobble(rng, 3.5)];
        let radius = rng.range(0.4, 1.1);
        canvas.stroke(&[Mark { at: start, radius }, Mark { at: end, radius }], 1.3);
    }
}

/// Probability of a spot without ink, and of another one after it.
const SPOTS: f64 = 0.12;
/// Probability of a stray stroke.
const STRAYS: f64 = 0.08;

/// Turns ink into bytes; the paper may be grainy and the pen faint.
fn develop(rng: &mut Rng, canvas: &Canvas, image: &mut [u8]) {
    let full = if rng.uniform() < 0.2 { rng.range(0.7, 1.0) } else { 1.0 };
    let grain = if rng.uniform() < 0.5 { rng.range(0.0, GRAIN) } else { 0.0 };
    for (pixel, &ink) in image.iter_mut().zip(canvas.ink.as_flattened()) {
        if ink > 0.0 {
            let value = full * ink * (1.0 - grain * rng.uniform());
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 255.5")]
            let byte = (255.0 * value + 0.5) as u8;
            *pixel = byte;
        }
    }
}

/// How much ink a grainy paper may take away, at most.
const GRAIN: f64 = 0.25;

#[cfg(test)]
mod tests {
    use super::*;

    /// FNV-1a, 64 bits.
    fn checksum(bytes: &[u8]) -> u64 {
        bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    }

    #[test]
    fn a_seed_names_one_data_set_for_ever() {
        // A change here means that every result on the drawn digits changes: the change log says so under Numerics.
        let (train, validation) = generate(SEED, 300, 100);
        let sums = [train.pixels(), train.labels(), validation.pixels(), validation.labels()].map(checksum);
        let expected = [0x848a_9e55_fa11_258d, 0x0199_0b37_81b7_f8db, 0xb90d_6c31_0fcf_267d, 0xab54_f8d8_a470_d7d5];
        assert_eq!(sums, expected, "{sums:#018x?}");
    }

    #[test]
    fn the_two_sets_do_not_touch_each_other() {
        let (train, validation) = generate(7, 50, 20);
        assert_eq!(generate(7, 50, 0).0, train);
        assert_eq!(generate(7, 0, 20).1, validation);
        assert_ne!(generate(8, 50, 20).0, train);
        assert!(generate(7, 0, 0).0.is_empty());
    }

    #[test]
    fn classes_are_balanced_and_shuffled() {
        let (train, validation) = generate(3, 1003, 200);
        let count = |images: &Images, class| images.labels().iter().filter(|&&label| label == class).count();
        for class in 0..10 {
            assert_eq!(count(&train, class), if class < 3 { 101 } else { 100 });
            assert_eq!(count(&validation, class), 20);
        }
        let in_order = train.labels().windows(2).filter(|pair| pair[1] == (pair[0] + 1) % 10).count();
        assert!(in_order < 200, "{in_order} of 1002 labels follow the one before");
    }

    #[test]
    fn images_have_the_statistics_of_mnist() {
        let (train, _) = generate(SEED, 2000, 0);
        let n = train.pixels().len() as f64;
        let mean = train.pixels().iter().map(|&p| f64::from(p)).sum::<f64>() / (255.0 * n);
        let square = train.pixels().iter().map(|&p| f64::from(p) * f64::from(p)).sum::<f64>() / (255.0 * 255.0 * n);
        let deviation = (square - mean * mean).sqrt();
        // MNIST has 0.1307 and 0.3081.
        assert!((0.115..0.145).contains(&mean), "mean {mean}");
        assert!((0.27..0.32).contains(&deviation), "standard deviation {deviation}");
        for (at, image) in train.pixels().chunks_exact(SIDE * SIDE).enumerate() {
            let ink = image.iter().filter(|&&p| p > 100).count();
            assert!((20..400).contains(&ink), "image {at} has {ink} bright pixels");
            assert!(image.iter().filter(|&&p| p == 0).count() > 300, "image {at} has hardly any black");
        }
        assert_eq!(train.pixels().iter().max(), Some(&255));
    }

    #[test]
    fn the_nearest_class_mean_is_neither_hopeless_nor_enough() {
        let (train, validation) = digits(SEED);
        let mut means = vec![[0.0f64; SIDE * SIDE]; 10];
        for (image, &label) in train.pixels().chunks_exact(SIDE * SIDE).zip(train.labels()) {
            for (mean, &pixel) in means[usize::from(label)].iter_mut().zip(image) {
                *mean += f64::from(pixel) / 1000.0;
            }
        }
        let distance = |image: &[u8], mean: &[f64]| -> f64 {
            image.iter().zip(mean).map(|(&p, m)| (f64::from(p) - m) * (f64::from(p) - m)).sum()
        };
        let right = validation
            .pixels()
            .chunks_exact(SIDE * SIDE)
            .zip(validation.labels())
            .filter(|(image, label)| {
                let distances: Vec<f64> = means.iter().map(|mean| distance(image, mean)).collect();
                let nearest = (0..10).min_by(|&a, &b| distances[a].total_cmp(&distances[b])).unwrap();
                nearest == usize::from(**label)
            })
            .count();
        // MNIST's own first ten thousand images give 0.76 on the first two thousand of its test set.
        let accuracy = right as f64 / validation.len() as f64;
        assert!((0.65..0.82).contains(&accuracy), "nearest mean: {accuracy}");
    }

    #[test]
    fn the_ways_to_write_are_well_formed() {
        for (class, ways) in WAYS.iter().enumerate() {
            assert_eq!(ways.iter().map(|way| way.0).sum::<u64>(), 10, "shares of class {class}");
            for stroke in ways.iter().flat_map(|way| way.1) {
                assert!(stroke.len() >= 3, "a stroke of class {class} is too short");
                assert!(
                    stroke.as_flattened().iter().all(|v| (0.0..=1.0).contains(v)),
                    "class {class} leaves the square"
                );
            }
        }
    }

    #[test]
    fn a_curve_goes_through_its_points_and_turns_at_a_doubled_one() {
        let keys = [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 2.0]];
        let mut places = Vec::new();
        spline(&keys, |at| places.push(at));
        assert_eq!(places.len(), 1 + 2 * PIECES);
        assert_eq!(places[PIECES], [1.0, 0.0]);
        assert_eq!(places[2 * PIECES], [1.0, 2.0]);
        // Two straight lines: the corner is not rounded.
        assert!(places[..=PIECES].iter().all(|at| at[1] == 0.0));
        assert!(places[PIECES..].iter().all(|at| at[0] == 1.0));
    }

    #[test]
    fn a_distortion_with_equal_nodes_is_a_shift() {
        let bend = Bend { nodes: [[[0.5, -0.25]; CELLS + 3]; CELLS + 3] };
        for at in [[0.0, 0.0], [0.3, 0.9], [0.5, 0.5], [1.0, 1.0], [1.2, -0.1]] {
            let [x, y] = bend.apply(at);
            assert!((x - at[0] - 0.5).abs() < 1e-12 && (y - at[1] + 0.25).abs() < 1e-12, "{at:?}");
        }
    }
}
