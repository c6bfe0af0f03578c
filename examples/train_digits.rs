//! Trains a small network with BatchNorm on the digits that come with the crate: `cargo run --release --example train_digits`.

use evenkeel::data::{LastBatch, Loader, Order, Scale, digits};
use evenkeel::layers::{BatchNorm1d, Linear, Relu};
use evenkeel::optim::Adam;
use evenkeel::train::{Trainer, fit};
use evenkeel::{Loss, Result, Rng, Sequential, Threads};

#[expect(clippy::print_stdout, reason = "an example shows what it does")]
fn main() -> Result<()> {
    let (train, validation) = digits::digits(digits::SEED);
    let mut rng = Rng::new(1, "init");
    let model = Sequential::<f32>::new()
        .push(Linear::new(784, 32, &mut rng)?)
        .push(BatchNorm1d::new(32)?)
        .push(Relu::new())
        .push(Linear::new(32, 10, &mut rng)?);
    let mut trainer = Trainer::new(model, [32, 784], Loss::CrossEntropy, Adam::new(0.01)?)?;
    let mut batches = Loader::new(&train, 32, Order::Shuffled(1), LastBatch::Drop, Scale::default())?;
    fit(&mut trainer, &mut batches, &validation, 3, &Threads::one(), &mut |epoch| {
        println!("epoch {}: accuracy {:.3}", epoch.number, epoch.validation.accuracy);
    })?;
    Ok(())
}
