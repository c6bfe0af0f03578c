//! A plan as a table: kernel by kernel, what it moves and computes, and how long it took.

use super::steps::{Normalisation, Product, Step, Steps};
use crate::loss::Loss;
use crate::model::Sequential;
use crate::parallel::Cost;
use crate::simd::Element;
use crate::tensor::Shape;
use std::fmt;
use std::time::{Duration, Instant};

/// One kernel of a training step.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The layers that it works for, as in `0: Linear(784, 32)`; `loss` and `update` for what belongs to none.
    pub layers: String,
    /// `forward`, `loss`, `backward` or `update`.
    pub pass: &'static str,
    /// The family in [`kernels`](crate::kernels), or `layer` for one that runs by its own passes.
    pub kernel: &'static str,
    /// `m x k x n` of a product, the elements of other kernels as they lie.
    pub shape: String,
    /// Additions, multiplications and the like; 0 where the layer does not tell.
    pub flops: usize,
    /// Bytes that it must at least read and write.
    pub bytes: usize,
    /// What runs in the same kernel or is left out because of a neighbour.
    pub fused_with: String,
    /// Whether it is shared between threads, if there are several; what a layer by its own passes does is not known.
    pub is_split: bool,
    /// Seconds of a step, on average, if they were [measured](super::Plan::measure).
    pub seconds: Option<f64>,
}

/// The kernels of a training step in the order in which they run, and the memory that they take.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    rows: Vec<Row>,
    parameters: usize,
    parameter_bytes: usize,
    memory_bytes: usize,
}

impl Explanation {
    /// One row for each kernel.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Numbers that are learnt.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Bytes of the arena of parameters, and again of that of their gradients.
    pub fn parameter_bytes(&self) -> usize {
        self.parameter_bytes
    }

    /// Bytes of the working memory.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Floating-point operations of all products: what a step is held to.
    pub fn product_flops(&self) -> usize {
        self.rows.iter().filter(|row| row.kernel == GEMM).map(|row| row.flops).sum()
    }
}

const GEMM: &str = "gemm";
const LAYER: &str = "layer";

/// A part of a step, which begins with its first row.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Forward,
    Loss,
    Backward,
    Update,
}

/// Seconds of each kernel, if they are measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock {
    /// Of each row of the explanation, over all steps, and nothing if nothing is measured.
    spent: Vec<Duration>,
    /// In the step at hand.
    current: Vec<Duration>,
    /// The first row of each part.
    first: [usize; 4],
    next: usize,
    steps: u32,
    since: Option<Instant>,
}

impl Clock {
    pub(super) fn running(rows: &[Row]) -> Self {
        let none = vec![Duration::ZERO; rows.len()];
        let first = ["forward", "loss", "backward", "update"]
            .map(|pass| rows.iter().position(|row| row.pass == pass).unwrap_or(rows.len()));
        Clock { spent: none.clone(), current: none, first, next: 0, steps: 0, since: None }
    }

    /// The first kernel of a part begins now.
    #[inline]
    pub(super) fn start(&mut self, part: Part) {
        if !self.spent.is_empty() {
            self.next = self.first[part as usize];
            self.since = Some(Instant::now());
        }
    }

    /// A kernel has ended, and the next begins.
    #[inline]
    pub(super) fn lap(&mut self) {
        let Some(current) = self.current.get_mut(self.next) else { return };
        if let Some(since) = self.since {
            let now = Instant::now();
            *current = now - since;
            self.next += 1;
            self.since = Some(now);
            if self.next == self.current.len() {
                self.spent.iter_mut().zip(&self.current).for_each(|(spent, current)| *spent += *current);
                (self.since, self.steps) = (None, self.steps + 1);
            }
        }
    }

    fn seconds(&self, row: usize) -> Option<f64> {
        (self.steps > 0).then(|| self.spent[row].as_secs_f64() / f64::from(self.steps))
    }
}

pub(super) fn explain<T: Element>(model: &Sequential<T>, laid: &Steps, loss: Loss, clock: &Clock) -> Explanation {
    let mut rows = Vec::new();
    for step in &laid.steps {
        forward::<T>(model, step, &mut rows);
    }
    let output = laid.steps.last().map_or(Shape::new(&[0]), |step| step.output);
    let kernel = match loss {
        Loss::CrossEntropy => "softmax_xent",
        Loss::Mse => "mse",
    };
    let of_loss = row("loss".to_string(), "loss", kernel, of(output), elementwise::<T>(20, 2, output));
    // However many rows, on one thread.
    rows.push(Row { fused_with: "its gradient".to_string(), is_split: false, ..of_loss });
    for (index, step) in laid.steps.iter().enumerate().rev() {
        backward::<T>(model, step, index == 0, &mut rows);
    }
    let mut parameters = 0;
    model.visit(&mut |_, parameter| parameters += parameter.value.len());
    let tensors = laid.slots.len();
    // Values are read and written, gradients read; what an optimiser remembers comes on top.
    let cost = Cost { flops: 0, bytes: 3 * parameters * size_of::<T>() };
    let of_update = row("update".to_string(), "update", "update", format!("{parameters}"), cost);
    let fused_with = if tensors > 1 { format!("one sweep over {tensors} tensors") } else { String::new() };
    // As Adam reckons, with two moments that are read and written.
    let with_moments = Cost { flops: 12 * laid.parameters, bytes: 7 * laid.parameters * size_of::<T>() };
    rows.push(Row { fused_with, is_split: with_moments.is_split_by_default(), ..of_update });
    for (i, row) in rows.iter_mut().enumerate() {
        row.seconds = clock.seconds(i);
    }
    let bytes = |elements: usize| elements * size_of::<T>();
    Explanation { rows, parameters, parameter_bytes: bytes(laid.parameters), memory_bytes: bytes(laid.memory) }
}

fn forward<T: Element>(model: &Sequential<T>, step: &Step, rows: &mut Vec<Row>) {
    let first = step.layers.start;
    let behind = |from: usize| -> String {
        (from..step.layers.end).map(|i| model.layers[i].describe()).collect::<Vec<_>>().join(", ")
    };
    if let Some(Product { inputs, outputs }) = step.product {
        let n = step.input.dims()[0];
        let cancels = step.norm.is_some() && !step.at.bias.is_empty();
        let mut with = behind(first + 1);
        if step.adds_bias() {
            with = if with.is_empty() { "bias".to_string() } else { format!("bias, {with}") };
        } else if cancels {
            with.push_str("; the bias cancels");
        }
        let row = row(
            model.name_of(first),
            "forward",
            GEMM,
            format!("{n}x{inputs}x{outputs}"),
            product::<T>(n, inputs, outputs),
        );
        rows.push(Row { fused_with: with, ..row });
    }
    if let Some(Normalisation { layer, .. }) = step.norm {
        let row =
            row(model.name_of(layer), "forward", "batchnorm", of(step.output), elementwise::<T>(6, 2, step.output));
        rows.push(Row { fused_with: behind(layer + 1), ..row });
    }
    if step.relu && step.layers.len() == 1 {
        rows.push(row(model.name_of(first), "forward", "relu", of(step.output), elementwise::<T>(1, 2, step.output)));
    }
    if step.is_single() {
        let bytes = (step.input.len() + step.output.len()) * size_of::<T>();
        rows.push(row(model.name_of(first), "forward", LAYER, of(step.input), Cost { flops: 0, bytes }));
    }
}

fn backward<T: Element>(model: &Sequential<T>, step: &Step, is_first: bool, rows: &mut Vec<Row>) {
    let first = step.layers.start;
    // Without a product in front of it, the first step reads x and dy, and writes nothing.
    let needs_dx = !is_first || step.product.is_some();
    let no_gradient = || if needs_dx { String::new() } else { "no gradient of the input".to_string() };
    if let Some(Normalisation { layer, .. }) = step.norm {
        let relu = if step.relu { model.layers[layer + 1].describe() } else { String::new() };
        let cost = elementwise::<T>(if needs_dx { 12 } else { 5 }, if needs_dx { 3 } else { 2 }, step.output);
        let row = row(model.name_of(layer), "backward", "batchnorm", of(step.output), cost);
        let with: Vec<String> = [relu, no_gradient()].into_iter().filter(|with| !with.is_empty()).collect();
        rows.push(Row { fused_with: with.join(", "), ..row });
    } else if step.relu && step.product.is_none() {
        let cost = if needs_dx { elementwise::<T>(1, 3, step.output) } else { Cost { flops: 0, bytes: 0 } };
        let row = row(model.name_of(first), "backward", "relu", of(step.output), cost);
        rows.push(Row { fused_with: no_gradient(), ..row });
    }
    if let Some(Product { inputs, outputs }) = step.product {
        let n = step.input.dims()[0];
        let mut with: Vec<String> = Vec::new();
        if step.norm.is_none() && step.relu {
            with.push(format!("mask of {}", model.layers[first + 1].describe()));
        }
        if step.adds_bias() {
            with.push("bias".to_string());
        }
        if is_first {
            with.push("no gradient of the input".to_string());
        }
        let name = || model.name_of(first);
        let dw = row(name(), "backward", GEMM, format!("{inputs}x{n}x{outputs}_tn"), product::<T>(inputs, n, outputs));
        rows.push(Row { fused_with: with.join(", "), ..dw });
        if !is_first {
            let cost = product::<T>(n, outputs, inputs);
            rows.push(row(name(), "backward", GEMM, format!("{n}x{outputs}x{inputs}_nt"), cost));
        }
    }
    if step.is_single() {
        let bytes = (2 * step.input.len() + step.output.len()) * size_of::<T>();
        rows.push(row(model.name_of(first), "backward", LAYER, of(step.input), Cost { flops: 0, bytes }));
    }
}

fn row(layers: String, pass: &'static str, kernel: &'static str, shape: String, cost: Cost) -> Row {
    let Cost { flops, bytes } = cost;
    let is_split = cost.is_split_by_default();
    Row { layers, pass, kernel, shape, flops, bytes, fused_with: String::new(), is_split, seconds: None }
}

fn product<T>(m: usize, k: usize, n: usize) -> Cost {
    Cost { flops: 2 * m * k * n, bytes: (m * k + k * n + m * n) * size_of::<T>() }
}

/// So many operations an element, and so many passes over memory.
fn elementwise<T>(flops: usize, tensors: usize, shape: Shape) -> Cost {
    Cost { flops: flops * shape.len(), bytes: tensors * shape.len() * size_of::<T>() }
}

fn of(shape: Shape) -> String {
    shape.dims().iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

/// A number with a prefix of a thousand, as in `3.5 M`.
fn short(number: usize) -> String {
    let x = number as f64;
    match x {
        _ if x < 1e4 => format!("{number} "),
        _ if x < 1e6 => format!("{:.1} k", x * 1e-3),
        _ if x < 1e9 => format!("{:.1} M", x * 1e-6),
        _ => format!("{:.1} G", x * 1e-9),
    }
}

impl fmt::Display for Explanation {
    /// A table, one line for each kernel, and two lines about memory.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: f64 = self.rows.iter().filter_map(|row| row.seconds).sum();
        let mut cells = vec![
            ["step", "pass", "kernel", "shape", "flop", "bytes", "threads", "fused with"].map(String::from).to_vec(),
        ];
        if total > 0.0 {
            cells[0].insert(7, "us".to_string());
            cells[0].insert(8, "of time".to_string());
        }
        for row in &self.rows {
            let threads = match row.kernel {
                LAYER => "-",
                _ if row.is_split => "all",
                _ => "1",
            };
            let threads = threads.to_string();
            let flops = if row.flops == 0 { "- ".to_string() } else { short(row.flops) };
            let (pass, kernel, shape) = (row.pass.to_string(), row.kernel.to_string(), row.shape.clone());
            let mut line =
                vec![row.layers.clone(), pass, kernel, shape, flops, format!("{}B", short(row.bytes)), threads];
            if let Some(seconds) = row.seconds.filter(|_| total > 0.0) {
                line.push(format!("{:.2}", 1e6 * seconds));
                line.push(format!("{:.1} %", 100.0 * seconds / total));
            }
            line.push(row.fused_with.clone());
            cells.push(line);
        }
        let widths: Vec<usize> = (0..cells[0].len())
            .map(|column| cells.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
            .collect();
        for line in &cells {
            let mut text = String::new();
            for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
                let is_number = (4..line.len() - 1).contains(&column);
                text += &if is_number { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        match self.parameter_bytes {
            0 => write!(f, "{} parameters, held by their layers; ", self.parameters)?,
            bytes => write!(f, "{} parameters in {}B, gradients in as much; ", self.parameters, short(bytes))?,
        }
        writeln!(f, "working memory {}B.", short(self.memory_bytes))?;
        write!(f, "threads: all where a kernel is long enough to be shared, if there are several.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([0, 9999, 25_088, 3_473_408, 2_449_000_000].map(short), ["0 ", "9999 ", "25.1 k", "3.5 M", "2.4 G"]);
    }
}
