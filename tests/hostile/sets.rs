//! Sets of images: their parts, the drawn digits, and the batches that are gathered from them.

use crate::support::bits;
use crate::table::Kind::*;
use crate::table::*;
use evenkeel::Result;
use evenkeel::data::{Images, LastBatch, Loader, Order, Scale, digits};

const MAX: usize = usize::MAX;
const MIB: usize = 1 << 20;

pub(crate) fn images() -> Vec<Entry> {
    let parts = |kind, input: &'static str, outcome, pixels: usize, labels: &'static [u8], size: [usize; 3]| {
        row(kind, input, outcome, move || {
            let [height, width, classes] = size;
            let images = Images::new(vec![7; pixels], labels.to_vec(), height, width, classes)?;
            assert_eq!((images.len(), images.pixels().len()), (labels.len(), pixels));
            Ok(())
        })
    };
    let pixels = "images: pixels: expected";
    vec![
        entry(
            "data::Images::new",
            [
                parts(ZeroRows, "no images", gives("an empty set"), 0, &[], [2, 3, 10]),
                parts(OneRow, "one image", gives("a set of one"), 6, &[9], [2, 3, 10]),
                parts(Empty, "no rows of pixels", shape(&["at least one pixel", "0x3"]), 0, &[1], [0, 3, 10]),
                parts(Empty, "no columns of pixels", shape(&["at least one pixel", "3x0"]), 0, &[], [3, 0, 10]),
                parts(Empty, "no pixels", shape(&[pixels, "1 images of 2x3 pixels", "0 bytes"]), 0, &[1], [2, 3, 10]),
                parts(Truncated, "a pixel too few", shape(&[pixels, "2 images", "11 bytes"]), 11, &[1, 1], [2, 3, 10]),
                parts(Mismatched, "a pixel too many", shape(&[pixels, "13 bytes"]), 13, &[1, 1], [2, 3, 10]),
                parts(Oversized, "pixels beyond memory", shape(&[pixels, "6 bytes"]), 6, &[1], [1 << 30, 1 << 30, 10]),
                parts(Overflow, "sizes that wrap to none", shape(&[pixels, "0 bytes"]), 0, &[1, 1], [1 << 63, 1, 10]),
                parts(Overflow, "sizes of no images", shape(&[pixels, "0 bytes"]), 0, &[], [MAX, 2, 10]),
                parts(
                    Oversized,
                    "a label too high",
                    invalid(&["label of image 1 is 10", "below 10"]),
                    2,
                    &[9, 10],
                    [1, 1, 10],
                ),
                parts(Senseless, "no classes", invalid(&["label of image 0 is 0", "below 0"]), 1, &[0], [1, 1, 0]),
            ],
        ),
        entry(
            "data::digits::generate",
            [
                row(ZeroRows, "none", gives("two empty sets"), || {
                    let (train, validation) = digits::generate(1, 0, 0);
                    assert!(train.is_empty() && validation.is_empty() && train.classes() == 10);
                    Ok(())
                }),
                row(OneRow, "one of each", gives("two sets of one"), || {
                    let (train, validation) = digits::generate(u64::MAX, 1, 1);
                    assert_eq!((train.len(), validation.len(), train.pixels().len()), (1, 1, 784));
                    Ok(())
                }),
                row(Overflow, "more than can be addressed", panics(&["digits: 18446744073709551615 images"]), || {
                    digits::generate(1, MAX, 0);
                    Ok(())
                }),
                // 784 times this is 2^64 + 96: few bytes if it wraps.
                row(Overflow, "a number whose pixels wrap", panics(&["digits: 23529010298098918 images"]), || {
                    digits::generate(1, 0, 23_529_010_298_098_918);
                    Ok(())
                }),
                row(Oversized, "more than there is memory for", panics(&["digits: 1099511627776 images"]), || {
                    digits::generate(1, MIB * MIB, 0);
                    Ok(())
                }),
            ],
        ),
        entry("data::Loader", loading()),
    ]
}

/// Five images of 2 x 3 pixels.
fn five() -> Images {
    let pixels = (0..30u8).map(|i| i.wrapping_mul(9)).collect();
    Images::new(pixels, vec![0, 1, 2, 1, 0], 2, 3, 3).unwrap()
}

fn load(images: &Images, batch_size: usize, last: LastBatch, scale: Scale) -> Result<Vec<(Vec<f32>, Vec<u8>)>> {
    let mut loader = Loader::<f32>::new(images, batch_size, Order::AsStored, last, scale)?;
    let (mut batches, promised) = (Vec::new(), loader.batches());
    while let Some(batch) = loader.next_batch() {
        batches.push((batch.x.data().to_vec(), batch.labels.to_vec()));
    }
    assert_eq!(batches.len(), promised);
    Ok(batches)
}

fn loading() -> Vec<Row> {
    let sized = |kind, size: usize, outcome| {
        row(kind, format!("batches of {size}"), outcome, move || {
            load(&five(), size, LastBatch::Keep, Scale::default())
                .map(|batches| assert_eq!(batches.len(), 5usize.div_ceil(size)))
        })
    };
    let scaled = |kind, mean: f64, std: f64, outcome| {
        row(kind, format!("mean {mean:e}, std {std:e}"), outcome, move || {
            let scale = Scale { mean, std };
            for (batch, _) in load(&five(), 2, LastBatch::Keep, scale)? {
                assert!(batch.iter().all(|x| x.is_finite()), "{batch:?}");
            }
            Ok(())
        })
    };
    let wrong = || invalid(&["scale of the pixels", "finite, and std not 0"]);
    let (nan, infinity) = (f64::NAN, f64::INFINITY);
    vec![
        row(ZeroRows, "a set without images", invalid(&["number of images is 0"]), || {
            load(&Images::new(vec![], vec![], 2, 3, 3)?, 1, LastBatch::Keep, Scale::default()).map(drop)
        }),
        sized(Empty, 0, invalid(&["batch size is 0, but must be from 1 to the number of examples, 5"])),
        sized(Oversized, 6, invalid(&["batch size is 6", "from 1 to the number of examples, 5"])),
        sized(Oversized, MAX, invalid(&["batch size is 18446744073709551615"])),
        sized(OneRow, 1, gives("five batches of one")),
        row(Truncated, "a last batch of one", gives("it, or not"), || {
            let counts =
                |last| load(&five(), 2, last, Scale::default()).map(|all| all.iter().map(|b| b.1.len()).collect());
            assert_eq!((counts(LastBatch::Keep)?, counts(LastBatch::Drop)?), (vec![2, 2, 1], vec![2, 2]));
            Ok(())
        }),
        scaled(Nan, nan, 1.0, wrong()),
        scaled(Nan, 0.0, nan, wrong()),
        scaled(Infinite, infinity, 1.0, wrong()),
        scaled(Infinite, 0.0, -infinity, wrong()),
        scaled(Senseless, 0.5, 0.0, wrong()),
        // As f32 these are 0, infinity, and what has an infinite inverse.
        scaled(Subnormal, 0.5, 1e-60, wrong()),
        scaled(Overflow, 0.5, 1e60, wrong()),
        scaled(Overflow, 1e60, 1.0, wrong()),
        scaled(Subnormal, 0.5, 1e-39, wrong()),
        scaled(Subnormal, 1e-39, 1.0, gives("numbers")),
        row(Misaligned, "rows of every length to 70", gives("each byte scaled alike, wherever it lies"), || {
            let scale = Scale { mean: 0.1307, std: 0.3081 };
            let all = Images::new((0..=255).collect(), vec![0; 256], 1, 1, 1)?;
            let each: Vec<f32> = load(&all, 256, LastBatch::Keep, scale)?.remove(0).0;
            for width in 1..=70 {
                let bytes: Vec<u8> = (0..3 * width).map(|i| u8::try_from(i * 37 % 256).unwrap()).collect();
                let images = Images::new(bytes.clone(), vec![0; 3], 1, width, 1)?;
                let found = load(&images, 2, LastBatch::Keep, scale)?.into_iter().flat_map(|batch| batch.0);
                let wanted: Vec<f32> = bytes.iter().map(|&byte| each[usize::from(byte)]).collect();
                assert_eq!(bits(&found.collect::<Vec<_>>()), bits(&wanted), "rows of {width}");
            }
            Ok(())
        }),
        row(Mismatched, "an epoch that ends by an error", gives("the error, and a loader that goes on"), || {
            let images = five();
            let mut loader = Loader::<f32>::new(&images, 2, Order::Shuffled(1), LastBatch::Keep, Scale::default())?;
            assert_eq!(loader.for_each(|_| Err("enough")), Err("enough"));
            loader.start_epoch(MAX);
            let mut seen = 0;
            loader
                .for_each(|batches| {
                    seen += batches.map(|batch| batch.labels.len()).sum::<usize>();
                    Ok::<(), ()>(())
                })
                .unwrap();
            assert!(seen == 5 && loader.next_batch().is_none());
            Ok(())
        }),
    ]
}
