//! Writing one tensor, element by element, from another and from constants of its channels.

use crate::simd::{Lanes, Rows, RowsMut};

/// Rows that are written before the next columns are: their constants are loaded once for all.
const ABREAST: usize = 8;

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
}

/// Where elements come from and where they go.
pub(super) trait Target<T> {
    fn load<V: Lanes<Elem = T>>(&mut self, i: usize, j: usize, len: usize) -> V;
    fn store<V: Lanes<Elem = T>>(&mut self, i: usize, j: usize, len: usize, value: V);
}

/// From one tensor to another.
pub(super) struct Apart<'a, T> {
    pub(super) from: Rows<'a, T>,
    pub(super) to: RowsMut<'a, T>,
}

/// Over what was read.
pub(super) struct InPlace<'a, T>(pub(super) RowsMut<'a, T>);

impl<T: Copy> Target<T> for Apart<'_, T> {
    #[inline(always)]
    fn load<V: Lanes<Elem = T>>(&mut self, i: usize, j: usize, len: usize) -> V {
        V::load_up_to(self.from.slice(i, j, len))
    }
    #[inline(always)]
    fn store<V: Lanes<Elem = T>>(&mut self, i: usize, j: usize, len: usize, value: V) {
        value.store_up_to(self.to.slice(i, j, len));
    }
}

impl<T: Copy> Target<T> for InPlace<'_, T> {
    #[inline(always)]
    fn load<V: Lanes<Elem = T>>(&mut self, i: usize, j: usize, len: usize) -> V {
        V::load_up_to(self.0.slice(i, j, len))
    }
    #[inline(always)]
    fn store<V: Lanes<Elem = T>>(&mut self, i: usize, j: usize, len: usize, value: V) {
        value.store_up_to(self.0.slice(i, j, len));
    }
}

/// Every row has the constants of its columns.
#[inline(always)]
pub(super) fn down<V: Lanes, M: Map<V>>(map: M, (rows, cols): (usize, usize), mut data: impl Target<V::Elem>) {
    for first in (0..rows).step_by(ABREAST) {
        let count = ABREAST.min(rows - first);
        let mut j = 0;
        while j + 2 * V::WIDTH <= cols {
            let values =
                [map.block((first, count), (j, V::WIDTH)), map.block((first, count), (j + V::WIDTH, V::WIDTH))];
            for i in 0..count {
                for k in 0..2 {
                    let at = j + k * V::WIDTH;
                    let input = data.load::<V>(first + i, at, V::WIDTH);
                    data.store(first + i, at, V::WIDTH, values[k].at(i, 0, V::WIDTH, input));
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

/// All elements have the same constants.
#[inline(always)]
pub(super) fn along<V: Lanes, M: Map<V>>(map: M, (runs, len): (usize, usize), mut data: impl Target<V::Elem>) {
    let values = map.block((0, runs), (0, len));
    for i in 0..runs {
        let mut j = 0;
        while j + V::WIDTH <= len {
            let input = data.load::<V>(i, j, V::WIDTH);
            data.store(i, j, V::WIDTH, values.at(i, j, V::WIDTH, input));
            j += V::WIDTH;
        }
        if j < len {
            let input = data.load::<V>(i, j, len - j);
            data.store(i, j, len - j, values.at(i, j, len - j, input));
        }
    }
}
