//! Writing one tensor, element by element, from another and from constants of its channels.

use super::shape::Reach;
use crate::simd::{Lanes, Rows, RowsMut, Transfer, TransferRow};

/// Rows that are written before the next columns are: their constants are loaded once for all. Eight took up to a quarter longer where
/// they came from the last cache, and a tenth less where they came from memory.
const AT_ONCE: usize = 4;

/// The same of rows that are far, and of narrow ones, whose columns are gone over soon.
const AT_ONCE_FAR: usize = 8;
const AT_ONCE_NARROW: usize = 64;

/// Bytes of a row up to which it is narrow.
const NARROW: usize = 128;

/// Elements between what is used and what is asked for: some 16 lines, as many as memory takes to answer.
const AHEAD: usize = 256;

/// The same where memory is gone over in order: the farther the better, up to a quarter of a first cache (128, 512 and 2048 were tried).
const AHEAD_IN_ORDER: usize = 2048;

/// Bytes of a row from which on rows that are far are written one by one: stores past the caches to lines 2 KiB apart took twice as long
/// as in order.
const WIDE: usize = 512;

/// What to ask for at element `j` of a row of `len`: how many rows below this one, and which of its elements. At the end of a row that is
/// in the next one, which no processor foresees.
#[inline(always)]
pub(super) fn ahead(j: usize, len: usize) -> (usize, usize) {
    match j + AHEAD {
        _ if len <= AHEAD => (AHEAD.div_ceil(len), j),
        at if at < len => (0, at),
        at => (1, at - len),
    }
}

/// What becomes of elements.
pub(super) trait Map<V: Lanes>: Copy {
    type Values: Values<V>;
    /// For rows `i..i + rows` at columns `j..j + cols`.
    fn block(&self, rows: (usize, usize), cols: (usize, usize)) -> Self::Values;
}

/// What becomes of the elements of a block.
pub(super) trait Values<V: Lanes> {
    /// Of `input`, at row `i` and columns `j..j + len`, counted from the block's first.
    fn at(&self, i: usize, j: usize, len: usize, input: V) -> V;
    /// Asks for what else is read at row `i` and column `j` to be brought near.
    fn prefetch(&self, _i: usize, _j: usize) {}
    /// Leaves the first `len` columns behind.
    fn pass(&mut self, _len: usize) {}
}

/// Writes `to` from `from`, or over itself: down columns that have constants of their own, or along the `pitch` columns of each channel.
#[inline(always)]
pub(super) fn write<V: Lanes, M: Map<V>>(
    map: M,
    pitch: Option<usize>,
    from: Option<Rows<'_, V::Elem>>,
    to: RowsMut<'_, V::Elem>,
    reach: Reach,
) {
    let data = Transfer::new(from, to, reach == Reach::Past);
    match (pitch, reach) {
        (Some(pitch), _) => along::<V, M>(map, pitch, data, reach),
        (_, Reach::Near) => down::<V, M, false>(map, data),
        _ if data.shape().1 * size_of::<V::Elem>() < WIDE => down::<V, M, true>(map, data),
        _ => in_order::<V, M>(map, data),
    }
}

/// Some rows at a time, so that constants are loaded once for all of them.
#[inline(always)]
fn down<V: Lanes, M: Map<V>, const FAR: bool>(map: M, mut data: Transfer<'_, V::Elem>) {
    let (rows, cols) = data.shape();
    let at_once = match cols * size_of::<V::Elem>() {
        ..=NARROW => AT_ONCE_NARROW,
        _ if FAR => AT_ONCE_FAR,
        _ => AT_ONCE,
    };
    for first in (0..rows).step_by(at_once) {
        let count = at_once.min(rows - first);
        let mut j = 0;
        while j + 2 * V::WIDTH <= cols {
            let values =
                [map.block((first, count), (j, V::WIDTH)), map.block((first, count), (j + V::WIDTH, V::WIDTH))];
            for i in 0..count {
                if FAR {
                    data.prefetch(first + i + at_once, j);
                    values[0].prefetch(i + at_once, 0);
                }
                for k in 0..2 {
                    let at = j + k * V::WIDTH;
                    let input = data.load::<V>(first + i, at, V::WIDTH);
                    data.store_line(first + i, at, values[k].at(i, 0, V::WIDTH, input));
                }
            }
            j += 2 * V::WIDTH;
        }
        while j < cols {
            let len = V::WIDTH.min(cols - j);
            let values = map.block((first, count), (j, len));
            for i in 0..count {
                let input = data.load::<V>(first + i, j, len);
                data.store(first + i, j, len, values.at(i, 0, len, input));
            }
            j += len;
        }
    }
}

/// Row by row, so that memory is gone over in one direction; constants are loaded again for each row.
#[inline(always)]
fn in_order<V: Lanes, M: Map<V>>(map: M, mut data: Transfer<'_, V::Elem>) {
    let (rows, cols) = data.shape();
    for i in 0..rows {
        let mut j = 0;
        while j + 2 * V::WIDTH <= cols {
            data.prefetch(i, j + AHEAD_IN_ORDER);
            map.block((i, 1), (j, V::WIDTH)).prefetch(0, AHEAD_IN_ORDER);
            for k in 0..2 {
                let at = j + k * V::WIDTH;
                let input = data.load::<V>(i, at, V::WIDTH);
                data.store_line(i, at, map.block((i, 1), (at, V::WIDTH)).at(0, 0, V::WIDTH, input));
            }
            j += 2 * V::WIDTH;
        }
        while j < cols {
            let len = V::WIDTH.min(cols - j);
            let input = data.load::<V>(i, j, len);
            data.store(i, j, len, map.block((i, 1), (j, len)).at(0, 0, len, input));
            j += len;
        }
    }
}

/// Channel by channel, and so row by row.
#[inline(always)]
fn along<V: Lanes, M: Map<V>>(map: M, pitch: usize, mut data: Transfer<'_, V::Elem>, reach: Reach) {
    let (rows, cols) = data.shape();
    // Elements of a line, at least a vector.
    let line = (64 / size_of::<V::Elem>()).max(V::WIDTH);
    for i in 0..rows {
        for j in (0..cols).step_by(pitch) {
            let (mut run, mut values) = (data.run(i, j, pitch), map.block((i, 1), (j, pitch)));
            // So that what follows begins with a line.
            let start = run.unaligned().min(pitch);
            part::<V, M>(&mut run, &mut values, start);
            while run.left() >= 2 * line {
                if reach >= Reach::Far {
                    let at = j + pitch - run.left();
                    for k in 0..2 {
                        let (below, column) = ahead(at + k * line, cols);
                        run.prefetch(below, column.wrapping_sub(at));
                        values.prefetch(below, column.wrapping_sub(at));
                    }
                }
                for k in 0..2 * line / V::WIDTH {
                    let at = k * V::WIDTH;
                    let input = run.load::<V>(at, V::WIDTH);
                    run.store_line(at, values.at(0, at, V::WIDTH, input));
                }
                run.pass(2 * line);
                values.pass(2 * line);
            }
            while run.left() >= V::WIDTH {
                let input = run.load::<V>(0, V::WIDTH);
                run.store(0, V::WIDTH, values.at(0, 0, V::WIDTH, input));
                run.pass(V::WIDTH);
                values.pass(V::WIDTH);
            }
            let rest = run.left();
            part::<V, M>(&mut run, &mut values, rest);
        }
    }
}

/// A part of a run that is no whole number of vectors.
#[inline(always)]
fn part<V: Lanes, M: Map<V>>(run: &mut TransferRow<'_, V::Elem>, values: &mut M::Values, len: usize) {
    let mut j = 0;
    while j < len {
        let some = V::WIDTH.min(len - j);
        let input = run.load::<V>(0, some);
        run.store(0, some, values.at(0, 0, some, input));
        run.pass(some);
        values.pass(some);
        j += some;
    }
}
