//! Writing one tensor, element by element, from another and from constants of its channels.

use super::shape::Reach;
use crate::simd::{Lanes, Rows, RowsMut, Transfer};

/// Rows that are written before the next columns are: their constants are loaded once for all.
const ABREAST: usize = 8;

/// Elements between what is used and what is asked for: some 16 lines, as many as memory takes to answer.
const AHEAD: usize = 256;

/// The same where memory is gone over in order: the farther the better, up to a quarter of a first cache (128, 512 and 2048 were tried).
const AHEAD_IN_ORDER: usize = 2048;

/// Bytes of a row from which on rows that are far are written one by one: stores past the caches to lines 2 KiB apart took twice as long
/// as in order.
const WIDE: usize = 1024;

/// What to ask for at element `j` of a run of `len`: how many runs below this one, and which of its elements. At the end of a run that is
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
}

/// Writes `to` from `from`, or over itself: down columns that have constants of their own, or along rows that share theirs.
#[inline(always)]
pub(super) fn write<V: Lanes, M: Map<V>, const DOWN: bool>(
    map: M,
    from: Option<Rows<'_, V::Elem>>,
    to: RowsMut<'_, V::Elem>,
    reach: Reach,
) {
    let data = Transfer::new(from, to, reach == Reach::Past);
    match reach {
        _ if !DOWN => along::<V, M>(map, data, reach),
        Reach::Near => down::<V, M, false>(map, data),
        _ if data.shape().1 * size_of::<V::Elem>() < WIDE => down::<V, M, true>(map, data),
        _ => in_order::<V, M>(map, data),
    }
}

/// Some rows at a time, so that constants are loaded once for all of them.
#[inline(always)]
fn down<V: Lanes, M: Map<V>, const FAR: bool>(map: M, mut data: Transfer<'_, V::Elem>) {
    let (rows, cols) = data.shape();
    for first in (0..rows).step_by(ABREAST) {
        let count = ABREAST.min(rows - first);
        let mut j = 0;
        while j + 2 * V::WIDTH <= cols {
            let values =
                [map.block((first, count), (j, V::WIDTH)), map.block((first, count), (j + V::WIDTH, V::WIDTH))];
            for i in 0..count {
                if FAR {
                    data.prefetch(first + i + ABREAST, j);
                    values[0].prefetch(i + ABREAST, 0);
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

#[inline(always)]
fn along<V: Lanes, M: Map<V>>(map: M, mut data: Transfer<'_, V::Elem>, reach: Reach) {
    let (runs, len) = data.shape();
    let values = map.block((0, runs), (0, len));
    for i in 0..runs {
        // So that what follows begins with a line.
        let start = data.unaligned(i).min(len);
        let mut j = 0;
        while j < start {
            let part = V::WIDTH.min(start - j);
            let input = data.load::<V>(i, j, part);
            data.store(i, j, part, values.at(i, j, part, input));
            j += part;
        }
        while j + 2 * V::WIDTH <= len {
            if reach >= Reach::Far {
                let (below, column) = ahead(j, len);
                data.prefetch(i + below, column);
                values.prefetch(i + below, column);
            }
            for k in 0..2 {
                let at = j + k * V::WIDTH;
                let input = data.load::<V>(i, at, V::WIDTH);
                data.store_line(i, at, values.at(i, at, V::WIDTH, input));
            }
            j += 2 * V::WIDTH;
        }
        while j < len {
            let part = V::WIDTH.min(len - j);
            let input = data.load::<V>(i, j, part);
            data.store(i, j, part, values.at(i, j, part, input));
            j += part;
        }
    }
}
