//! Whole networks with their losses.

use super::*;

#[derive(Clone, Debug)]
struct Hidden {
    width: usize,
    eps: f64,
    affine: bool,
    bias: bool,
}

/// Linear, BatchNorm, ReLU, one to three times, then a Linear.
#[derive(Clone, Debug)]
struct Stack {
    rows: usize,
    inputs: usize,
    hidden: Vec<Hidden>,
    outputs: usize,
    last_bias: bool,
    seed: u64,
}

fn any_stack(least_outputs: usize) -> impl Strategy<Value = Stack> {
    any_rows().prop_flat_map(move |rows| {
        let hidden = (select(WIDTHS), any_eps(rows), any::<bool>(), any::<bool>())
            .prop_map(|(width, eps, affine, bias)| Hidden { width, eps, affine, bias });
        let outputs = select(WIDTHS).prop_map(move |width| width.max(least_outputs));
        let hidden = prop::collection::vec(hidden, 1..=3);
        (select(WIDTHS), hidden, outputs, any::<bool>(), 0..1u64 << 32).prop_map(
            move |(inputs, hidden, outputs, last_bias, seed)| Stack { rows, inputs, hidden, outputs, last_bias, seed },
        )
    })
}

impl Stack {
    fn model(&self) -> Sequential<f64> {
        let rng = &mut Rng::new(self.seed, "stack");
        let linear = |inputs, outputs, bias, rng: &mut Rng| {
            let layer = Linear::new(inputs, outputs, rng).unwrap();
            if bias { layer } else { layer.without_bias() }
        };
        let (mut model, mut width) = (Sequential::new(), self.inputs);
        for h in &self.hidden {
            let options = BatchNormOptions { eps: h.eps, affine: h.affine, ..BatchNormOptions::default() };
            let mut norm = BatchNorm1d::with_options(h.width, options).unwrap();
            norm.visit_mut(&mut |p| disturb(rng, p.value));
            model = model.push(linear(width, h.width, h.bias, rng)).push(norm).push(Relu::new());
            width = h.width;
        }
        model.push(linear(width, self.outputs, self.last_bias, rng))
    }

    /// Checks every gradient with the default tolerances: layer by layer, by random directions, and as a plan computes them.
    fn check(&self, loss: Loss) -> std::result::Result<(), TestCaseError> {
        let mut model = self.model();
        let x = normal_batch([self.rows, self.inputs], self.seed).unwrap();
        let rng = &mut Rng::new(self.seed, "targets");
        let classes: Vec<u8> = (0..self.rows).map(|_| u8::try_from(rng.index(self.outputs)).unwrap()).collect();
        let values = normals(rng, self.rows * self.outputs);
        let targets = match loss {
            Loss::CrossEntropy => Targets::Classes(&classes),
            Loss::Mse => Targets::Values(&values),
        };
        let report = GradCheck::new(self.seed).model(&mut model, loss, x.view(), targets)?;
        GradCheck::new(self.seed).fast().model(&mut model, loss, x.view(), targets)?;
        for fusion in [Fusion::On, Fusion::Off] {
            GradCheck::new(self.seed).plan(self.model(), fusion, loss, x.view(), targets)?;
        }
        // The biases that a normalisation cancels have gradient zero.
        let mut space = model.workspace(x.shape())?;
        model.forward(x.view(), &mut space)?;
        let (y, dy) = space.output_and_gradient()?;
        loss.forward_backward(y, targets, dy)?;
        model.zero_grad();
        model.backward(x.view(), &mut space, None)?;
        let (last, mut cancelled) = (3 * self.hidden.len(), 0);
        let mut worst = 0.0f64;
        model.visit(&mut |layer, p| {
            if layer % 3 == 0 && layer < last && p.name == "bias" {
                cancelled += 1;
                worst = p.grad.iter().fold(worst, |worst, g| worst.max(g.abs()));
            }
        });
        prop_assert_eq!(cancelled, self.hidden.iter().filter(|h| h.bias).count());
        prop_assert!(worst < 1e-12, "{}\n{}", worst, report);
        Ok(())
    }
}

proptest! {
    #![proptest_config(fixed(60, 1))]

    #[test]
    fn networks_with_cross_entropy(stack in any_stack(2)) {
        stack.check(Loss::CrossEntropy)?;
    }

    #[test]
    fn networks_with_mean_squared_error(stack in any_stack(1)) {
        stack.check(Loss::Mse)?;
    }
}

#[test]
fn a_network_on_every_instruction_set() {
    let hidden = |width, eps| Hidden { width, eps, affine: true, bias: true };
    for (rows, outputs, loss) in
        [(2, 7, Loss::CrossEntropy), (19, 3, Loss::CrossEntropy), (3, 1, Loss::Mse), (18, 9, Loss::Mse)]
    {
        let hidden = vec![hidden(13, 0.5), hidden(5, 0.01)];
        let stack = Stack { rows, inputs: 9, hidden, outputs, last_bias: true, seed: 11 };
        for isa in Isa::available() {
            with_isa(isa, || stack.check(loss)).unwrap_or_else(|e| panic!("{isa}, {rows} rows, {loss:?}: {e}"));
        }
    }
}
