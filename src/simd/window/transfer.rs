//! From rows to rows by vectors, past the caches or not.

use super::rows::{Rows, RowsMut};
use super::{prefetch, unaligned};
use crate::simd::{Element, Lanes};
use std::marker::PhantomData;

/// Rows that become others, or that are written over: read and written at the same places, by vectors.
pub(crate) struct Transfer<'a, T> {
    from: *const T,
    from_stride: usize,
    to: RowsMut<'a, T>,
    /// Whether the caches are passed by.
    is_past: bool,
    read: PhantomData<&'a [T]>,
}

impl<'a, T: Element> Transfer<'a, T> {
    /// From rows of the same number and length; or over what is there.
    ///
    /// `is_past`: [`Transfer::store_line`] writes past the caches, unless it is over what was read, whose lines are near anyway. Such
    /// stores wait in buffers of their own, in any order: dropping this, which nobody may forget to, makes them visible. Nobody else has
    /// a view of the elements until then, as it borrows them mutably.
    #[inline(always)]
    pub(crate) fn new(from: Option<Rows<'a, T>>, to: RowsMut<'a, T>, is_past: bool) -> Self {
        let is_past = is_past && from.is_some();
        let (from, from_stride) = match from {
            Some(from) => {
                assert!(from.rows == to.rows && from.cols == to.cols);
                (from.start, from.stride)
            }
            None => (to.start.cast_const(), to.stride),
        };
        Transfer { from, from_stride, to, is_past, read: PhantomData }
    }

    /// Number of rows and of columns.
    #[inline(always)]
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.to.rows, self.to.cols)
    }

    /// `len` elements of row `i` from column `j` on.
    #[inline(always)]
    pub(crate) fn run(&mut self, i: usize, j: usize, len: usize) -> TransferRow<'_, T> {
        assert!(i < self.to.rows && j <= self.to.cols && len <= self.to.cols - j);
        TransferRow {
            from: self.from.wrapping_add(i * self.from_stride + j),
            from_stride: self.from_stride,
            to: self.to.start.wrapping_add(i * self.to.stride + j),
            to_stride: self.to.stride,
            left: len,
            is_past: self.is_past,
            data: PhantomData,
        }
    }

    /// `len` elements of row `i` from column `j` on, at most a vector.
    #[inline(always)]
    pub(crate) fn load<V: Lanes<Elem = T>>(&self, i: usize, j: usize, len: usize) -> V {
        assert!(i < self.to.rows && j <= self.to.cols && len <= self.to.cols - j);
        // SAFETY: the elements lie between the first and the last of the `Rows` that `new` was given, which are as many and as long as
        // `to`; or they are `to`'s, which `self` borrows mutably and which nobody writes while this slice is there. Both lie in their
        // data (`Rows::slice`, `RowsMut::slice`).
        V::load_up_to(unsafe { std::slice::from_raw_parts(self.from.add(i * self.from_stride + j), len) })
    }

    /// Asks for the lines of an element to be brought near, to be read and written soon; it may lie anywhere, even outside.
    #[inline(always)]
    pub(crate) fn prefetch(&self, i: usize, j: usize) {
        prefetch(self.from.wrapping_add(i.wrapping_mul(self.from_stride).wrapping_add(j)));
        if !self.is_past {
            prefetch(self.to.start.wrapping_add(i.wrapping_mul(self.to.stride).wrapping_add(j)));
        }
    }

    /// Writes `len` elements of row `i` from column `j` on, at most a vector.
    #[inline(always)]
    pub(crate) fn store<V: Lanes<Elem = T>>(&mut self, i: usize, j: usize, len: usize, value: V) {
        value.store_up_to(self.to.slice(i, j, len));
    }

    /// Writes a vector of row `i` from column `j` on: a part of lines that are written whole, and once.
    #[inline(always)]
    pub(crate) fn store_line<V: Lanes<Elem = T>>(&mut self, i: usize, j: usize, value: V) {
        store_line(self.to.slice(i, j, V::WIDTH), value, self.is_past);
    }
}

/// What is left of a part of a row of a [`Transfer`]. It cannot outlive that, which fences.
pub(crate) struct TransferRow<'a, T> {
    from: *const T,
    from_stride: usize,
    to: *mut T,
    to_stride: usize,
    left: usize,
    is_past: bool,
    data: PhantomData<&'a mut [T]>,
}

impl<T: Element> TransferRow<'_, T> {
    /// Number of elements.
    #[inline(always)]
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Elements before one that begins a line of 64 bytes, if that matters because the caches are passed by.
    #[inline(always)]
    pub(crate) fn unaligned(&self) -> usize {
        if self.is_past { unaligned(self.to) } else { 0 }
    }

    /// Leaves the first `len` elements behind.
    #[inline(always)]
    pub(crate) fn pass(&mut self, len: usize) {
        assert!(len <= self.left);
        self.from = self.from.wrapping_add(len);
        self.to = self.to.wrapping_add(len);
        self.left -= len;
    }

    /// `len` elements from `j` on, at most a vector.
    #[inline(always)]
    pub(crate) fn load<V: Lanes<Elem = T>>(&self, j: usize, len: usize) -> V {
        assert!(j <= self.left && len <= self.left - j);
        // SAFETY: as in `Transfer::load`: `left` counts what has not been passed of the row.
        V::load_up_to(unsafe { std::slice::from_raw_parts(self.from.add(j), len) })
    }

    /// Writes `len` elements from `j` on, at most a vector.
    #[inline(always)]
    pub(crate) fn store<V: Lanes<Elem = T>>(&mut self, j: usize, len: usize, value: V) {
        value.store_up_to(self.slice(j, len));
    }

    /// Writes a vector from `j` on: a part of lines that are written whole, and once.
    #[inline(always)]
    pub(crate) fn store_line<V: Lanes<Elem = T>>(&mut self, j: usize, value: V) {
        let is_past = self.is_past;
        store_line(self.slice(j, V::WIDTH), value, is_past);
    }

    #[inline(always)]
    fn slice(&mut self, j: usize, len: usize) -> &mut [T] {
        assert!(j <= self.left && len <= self.left - j);
        // SAFETY: as in `RowsMut::slice`: `left` counts what has not been passed of the row, which the transfer borrows mutably.
        unsafe { std::slice::from_raw_parts_mut(self.to.add(j), len) }
    }

    /// Asks for the lines of an element `i` rows below to be brought near, to be read and written soon; it may lie anywhere, even outside.
    #[inline(always)]
    pub(crate) fn prefetch(&self, i: usize, j: usize) {
        prefetch(self.from.wrapping_add(i.wrapping_mul(self.from_stride).wrapping_add(j)));
        if !self.is_past {
            prefetch(self.to.wrapping_add(i.wrapping_mul(self.to_stride).wrapping_add(j)));
        }
    }
}

/// Writes a vector, past the caches or not.
#[inline(always)]
fn store_line<V: Lanes>(to: &mut [V::Elem], value: V, is_past: bool) {
    if is_past {
        // SAFETY: a `Transfer`, or a `TransferRow` of one, calls this; dropping that fences on the thread that stored, because it stays on it.
        // What was read lies elsewhere: `Transfer::new`.
        unsafe { value.stream(to) }
    } else {
        value.store(to);
    }
}

impl<T> Drop for Transfer<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.is_past {
            // SAFETY: SSE is part of x86-64.
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            unsafe {
                std::arch::x86_64::_mm_sfence();
            }
        }
    }
}
