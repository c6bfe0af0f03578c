//! What numbers lie in, and what they are computed on: shapes, tensors, matrices, threads, instruction sets.

use crate::support::{bits, message};
use crate::table::Kind::*;
use crate::table::*;
use evenkeel::Threads;
use evenkeel::matrix::{MatMut, MatRef};
use evenkeel::simd::{Isa, with_isa};
use evenkeel::tensor::{ALIGNMENT, Shape, Tensor, TensorMut, TensorRef};
use std::panic::{AssertUnwindSafe, catch_unwind};

const MAX: usize = usize::MAX;

pub(crate) fn tensors() -> Vec<Entry> {
    let views = |dims: &'static [usize], len: usize, kind, outcome: fn() -> Outcome| {
        let of = format!("{dims:?} over {len} elements");
        [
            row(kind, format!("TensorRef {of}"), outcome(), move || {
                TensorRef::new(Shape::new(dims), &vec![0f32; len]).map(|view| assert_eq!(view.data().len(), len))
            }),
            row(kind, format!("TensorMut {of}"), outcome(), move || {
                TensorMut::new(Shape::new(dims), &mut vec![0f32; len])
                    .map(|mut view| assert_eq!(view.data().len(), len))
            }),
            row(kind, format!("Tensor::from_slice {of}"), outcome(), move || {
                let tensor = Tensor::from_slice(Shape::new(dims), &vec![0f32; len])?;
                assert_eq!(tensor.data().len(), len);
                Ok(())
            }),
        ]
    };
    let too_many = |dims: &'static [usize], kind, words: &[&str]| {
        row(kind, format!("zeros {dims:?}"), shape(words), || Tensor::<f64>::zeros(Shape::new(dims)).map(drop))
    };
    let checked = |dims: &'static [usize], wanted: Option<usize>| {
        row(Overflow, format!("checked_len of {dims:?}"), gives("a number of elements, or none"), move || {
            assert_eq!(Shape::new(dims).checked_len(), wanted);
            Ok(())
        })
    };
    vec![
        entry(
            "tensor::Shape",
            [
                row(Oversized, "five dimensions", panics(&["at most four dimensions, not 5"]), || {
                    Shape::new(&[1; 5]);
                    Ok(())
                }),
                row(Empty, "no dimensions", gives("one element"), || {
                    let shape = Shape::new(&[]);
                    assert!(shape.len() == 1 && !shape.is_empty() && shape.dims().is_empty());
                    Ok(())
                }),
                row(Overflow, "len beyond an address", panics(&["number of elements fits an address"]), || {
                    Shape::new(&[MAX, 2]).len();
                    Ok(())
                }),
                checked(&[MAX, 2], None),
                checked(&[2, MAX], None),
                checked(&[1 << 32, 1 << 32, 2], None),
                checked(&[MAX, 1, 1, 1], Some(MAX)),
                // Nothing is nothing, on whichever side the zero stands.
                checked(&[0, MAX, MAX], Some(0)),
                checked(&[MAX, MAX, 0], Some(0)),
            ],
        ),
        entry(
            "tensor::Tensor, TensorRef, TensorMut",
            [
                views(&[2, 2], 3, Truncated, || shape(&["tensor: expected [2, 2], found 3 elements"])),
                views(&[2, 2], 5, Mismatched, || shape(&["tensor: expected [2, 2], found 5 elements"])),
                views(&[MAX, 2], 1, Oversized, || shape(&["[18446744073709551615, 2]", "1 elements"])),
                // What this wraps to.
                views(&[MAX, MAX], 1, Overflow, || shape(&["1 elements"])),
                views(&[1 << 63, 2], 0, Overflow, || shape(&["0 elements"])),
                views(&[], 0, Empty, || shape(&["expected [], found 0 elements"])),
                views(&[], 1, Empty, || gives("one element")),
                views(&[0, 5], 0, ZeroRows, || gives("no elements")),
                views(&[0, MAX, MAX], 0, ZeroRows, || gives("no elements")),
                views(&[1, 5], 5, OneRow, || gives("five elements")),
            ]
            .into_iter()
            .flatten()
            .chain([
                too_many(&[MAX, 2], Overflow, &["tensor: expected a size that fits an address"]),
                too_many(&[MAX], Overflow, &["a size that fits an address"]),
                too_many(&[MAX / 16], Overflow, &["a size that fits an address", "1152921504606846975"]),
                too_many(&[1 << 56], Oversized, &["a size that the system has memory for"]),
                row(Misaligned, "every size to 40", gives("a start on a cache line, also of a clone"), || {
                    for len in 0..=40 {
                        let tensor = Tensor::<f32>::zeros([len])?;
                        for data in [tensor.data(), tensor.clone().data()] {
                            assert!(data.len() == len && (data.as_ptr() as usize).is_multiple_of(ALIGNMENT), "{len}");
                        }
                    }
                    Ok(())
                }),
                row(Nan, "NaN, infinities, subnormals and -0", gives("their bits"), || {
                    let odd = [f32::NAN, f32::INFINITY, -f32::INFINITY, f32::from_bits(1), -0.0];
                    let tensor = Tensor::from_slice([5], &odd)?;
                    assert_eq!((bits(tensor.data()), bits(tensor.clone().data())), (bits(&odd), bits(&odd)));
                    Ok(())
                }),
            ]),
        ),
    ]
}

pub(crate) fn matrices() -> Vec<Entry> {
    let strided =
        |kind, len: usize, (rows, cols): (usize, usize), (rs, cs): (usize, usize), outcome: fn() -> Outcome| {
            let of = format!("{rows}x{cols} with strides {rs}, {cs} over {len}");
            [
                row(kind, format!("MatRef {of}"), outcome(), move || {
                    MatRef::with_strides(&vec![0u8; len], rows, cols, rs, cs).map(drop)
                }),
                row(kind, format!("MatMut {of}"), outcome(), move || {
                    MatMut::with_strides(&mut vec![0u8; len], rows, cols, rs, cs).map(drop)
                }),
            ]
        };
    let onto_one_another = |(rows, cols): (usize, usize), (rs, cs): (usize, usize), outcome| {
        let of = format!("MatMut {rows}x{cols} with strides {rs}, {cs}");
        row(Mismatched, of, outcome, move || MatMut::with_strides(&mut [0u8; 64], rows, cols, rs, cs).map(drop))
    };
    let full = |kind, len: usize, rows: usize, cols: usize| {
        let said = format!("matrix: {rows}x{cols} over {len} elements");
        [
            row(kind, format!("MatRef {rows}x{cols} of {len}"), panics(&[&said]), move || {
                MatRef::new(&vec![0u8; len], rows, cols);
                Ok(())
            }),
            row(kind, format!("MatMut {rows}x{cols} of {len}"), panics(&[&said]), move || {
                MatMut::new(&mut vec![0u8; len], rows, cols);
                Ok(())
            }),
        ]
    };
    let apart = "strides that keep the elements of a result apart";
    let rows = [
        full(Truncated, 5, 2, 3),
        full(Mismatched, 7, 2, 3),
        full(Overflow, 0, 1 << 63, 2),
        full(Oversized, 5, MAX, 1),
        strided(Truncated, 5, (2, 3), (3, 1), || {
            shape(&["at least 6 elements for 2x3 with strides 3, 1", "5 elements"])
        }),
        strided(Truncated, 6, (2, 3), (4, 1), || shape(&["at least 7 elements"])),
        strided(Overflow, 6, (MAX, 2), (MAX, 1), || shape(&["matrix: expected a size that fits an address"])),
        strided(Overflow, 6, (2, 2), (MAX, 1), || shape(&["a size that fits an address"])),
        strided(Oversized, 6, (2, 1), (1 << 40, 1), || shape(&["at least 1099511627777 elements"])),
        strided(ZeroRows, 0, (0, 5), (5, 1), || gives("no elements")),
        strided(Empty, 0, (0, MAX), (MAX, MAX), || gives("no elements, however far apart")),
        strided(Empty, 0, (MAX, 0), (1, 0), || gives("no elements")),
        strided(OneRow, 3, (1, 3), (MAX, 1), || gives("a row that needs no stride")),
    ];
    let others = [
        onto_one_another((2, 3), (2, 1), shape(&[apart, "2x3 with strides 2, 1"])),
        onto_one_another((2, 3), (0, 1), shape(&[apart])),
        onto_one_another((2, 3), (1, 0), shape(&[apart])),
        onto_one_another((2, 3), (1, 1), shape(&[apart])),
        // Apart, but neither stride is longer than what the other spans.
        onto_one_another((2, 3), (3, 2), shape(&[apart])),
        onto_one_another((2, 3), (1, 2), gives("columns beside one another")),
        row(Oversized, "a row range that ends outside", panics(&["matrix: rows 1..3 of 2"]), || {
            MatRef::new(&[0u8; 6], 2, 3).row_range(1, 3);
            Ok(())
        }),
        row(Senseless, "a row range that ends before it begins", panics(&["matrix: rows 2..1 of 2"]), || {
            MatRef::new(&[0u8; 6], 2, 3).row_range(2, 1);
            Ok(())
        }),
        row(Oversized, "an element outside", panics(&["matrix: (2, 0) of 2x3"]), || {
            MatRef::new(&[0u8; 6], 2, 3).get(2, 0);
            Ok(())
        }),
        row(Empty, "an element of a matrix without any", panics(&["matrix: (0, 0) of 0x0"]), || {
            MatRef::<u8>::new(&[], 0, 0).get(0, 0);
            Ok(())
        }),
        row(ZeroRows, "no rows at the end of a matrix", gives("no rows"), || {
            assert_eq!(MatRef::new(&[0u8; 6], 2, 3).row_range(2, 2).rows(), 0);
            Ok(())
        }),
        row(Misaligned, "strides of 0 and of more than a row", gives("the elements asked for"), || {
            let data: Vec<u8> = (0..12).collect();
            assert_eq!(MatRef::with_strides(&data[1..], 3, 2, 4, 2)?.get(2, 1), 11);
            assert_eq!(MatRef::with_strides(&data[5..6], 1000, 1000, 0, 0)?.get(999, 999), 5);
            Ok(())
        }),
    ];
    vec![entry("matrix::MatRef, MatMut", rows.into_iter().flatten().chain(others))]
}

pub(crate) fn processors() -> Vec<Entry> {
    let refused_count = |count: usize| {
        let said = format!("threads is {count}, but must be from 1 to 1024");
        row(Oversized, format!("{count} threads"), invalid(&[&said]), move || Threads::new(count).map(drop))
    };
    let unknown = |name: &'static str| {
        let said = format!("instruction set is {name}, but must be one of scalar, portable");
        row(Mismatched, format!("the instruction set {name:?}"), invalid(&[&said]), || Isa::named(name).map(drop))
    };
    vec![
        entry(
            "parallel::Threads",
            [
                row(Empty, "0 threads", invalid(&["threads is 0, but must be from 1 to 1024"]), || {
                    Threads::new(0).map(drop)
                }),
                refused_count(1025),
                refused_count(MAX),
                row(OneRow, "1 thread", gives("the calling thread"), || {
                    let here = std::thread::current().id();
                    assert_eq!(Threads::new(1)?.run(|| std::thread::current().id()), here);
                    Ok(())
                }),
                row(Senseless, "work that panics", gives("the panic, and threads that go on"), || {
                    let threads = Threads::new(2)?.fork_from(0);
                    let cause = catch_unwind(AssertUnwindSafe(|| threads.run(|| panic!("it fell")))).unwrap_err();
                    assert_eq!(message(&*cause), "it fell");
                    assert_eq!(threads.run(|| 7), 7);
                    Ok(())
                }),
            ],
        ),
        entry(
            "simd::Isa, with_isa",
            [
                unknown(""),
                unknown("AVX2"),
                unknown("avx1024"),
                row(Senseless, "a panic inside", gives("the panic, and the set from before"), || {
                    let before = Isa::current();
                    for isa in Isa::available() {
                        let cause = catch_unwind(|| with_isa(isa, || panic!("on {}", Isa::current()))).unwrap_err();
                        assert_eq!(message(&*cause), format!("on {isa}"));
                        assert_eq!(Isa::current(), before);
                    }
                    Ok(())
                }),
            ],
        ),
    ]
}
