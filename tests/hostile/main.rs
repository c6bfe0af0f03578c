//! Hostile inputs as a table: for every reader and every public entry point, what comes in, and what the documentation
//! says becomes of it.
//!
//! A row is (kind, input, outcome) under the name of its entry point, and is executed. An error is of the documented
//! variant, names what is wrong, and comes before anything is written. A panic, with which only functions on slices may
//! answer, names the lengths. Where numbers that are not finite or subnormal are legal, what is documented of them is
//! compared. Rows over numbers run on every instruction set of this machine, in f32 and in f64.
//!
//! `cargo test --test hostile -- --show-output` prints how many rows of which kinds an entry point has; with
//! `--features data` the readers of files are among them.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "every line here belongs to a test")]

mod batchnorm;
mod containers;
mod gradcheck;
mod gradcheck_layers;
#[cfg(feature = "data")]
mod idx;
#[cfg(feature = "data")]
mod idx_files;
mod kernels;
mod layers;
mod models;
mod products;
mod sets;
mod steps;
#[allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "it serves the tests of kernels, and here a part of it does"
)]
#[path = "../kernels/support.rs"]
mod support;
mod table;
mod training;

use evenkeel::simd::Element;
use support::in_both_types;
use table::{Coverage, Entry};

fn of_both_types(entries: Vec<Vec<Entry>>) -> Coverage {
    let table: Vec<Entry> = entries.into_iter().flatten().collect();
    table::show("any", &table);
    table::check(&table)
}

#[test]
fn containers() {
    of_both_types(vec![containers::tensors(), containers::matrices(), containers::processors()]);
}

#[test]
fn sets_of_images() {
    #[cfg(feature = "data")]
    of_both_types(vec![sets::images(), idx::readers()]).assert_complete("readers");
    #[cfg(not(feature = "data"))]
    {
        of_both_types(vec![sets::images()]);
        eprintln!("skipped: readers of files, without the feature `data`");
    }
}

#[test]
fn gradient_checks_of_functions() {
    of_both_types(vec![gradcheck::functions()]);
}

fn kernels_by_elements<T: Element>() {
    table::sweep::<T>(&kernels::elementwise::<T>());
    table::sweep::<T>(&kernels::updates::<T>());
}

fn kernels_by_rows<T: Element>() {
    table::sweep::<T>(&kernels::by_rows::<T>());
}

fn kernel_of_batchnorm<T: Element>() {
    table::sweep::<T>(&batchnorm::passes::<T>());
}

fn kernels_of_products<T: Element>() {
    table::sweep::<T>(&products::products::<T>());
}

fn layers_of_every_kind<T: Element>() {
    let table: Vec<Entry> = layers::passes::<T>().into_iter().chain(layers::making::<T>()).collect();
    table::sweep::<T>(&table).assert_complete("layers");
}

fn gradient_checks<T: Element>() {
    table::sweep::<T>(&gradcheck_layers::checks::<T>()).assert_complete("gradient checks");
}

fn losses_and_optimisers<T: Element>() {
    table::sweep::<T>(&steps::losses::<T>());
    table::sweep::<T>(&steps::optimisers::<T>());
}

fn models_and_training<T: Element>() {
    table::sweep::<T>(&models::sequentials::<T>());
    table::sweep::<T>(&training::plans::<T>());
    table::sweep::<T>(&training::training::<T>());
}

in_both_types!(
    gradient_checks,
    kernel_of_batchnorm,
    kernels_by_elements,
    kernels_by_rows,
    kernels_of_products,
    layers_of_every_kind,
    losses_and_optimisers,
    models_and_training
);
