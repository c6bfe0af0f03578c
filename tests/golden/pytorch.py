"""Prints `pytorch.rs`: what PyTorch computes, in f64 on a CPU, from small inputs that are printed with it.

    python tests/golden/pytorch.py > tests/golden/pytorch.rs && cargo fmt

Inputs are drawn once from a seeded generator and rounded to two decimals, so that they can be read and typed.
"""

import torch
from torch import nn
from torch.nn import functional as F

torch.set_default_dtype(torch.float64)
torch.manual_seed(21)


def draw(*shape, scale=1.0, shift=0.0):
    return torch.round(torch.randn(*shape) * scale + shift, decimals=2)


def emit(name, value, doc):
    print(f"/// {doc}")
    if isinstance(value, float):
        kind, text = "f64", repr(value)
    else:
        items = value.detach().flatten().tolist()
        kind = f"[{'f64' if value.is_floating_point() else 'usize'}; {len(items)}]"
        text = "[" + ", ".join(map(repr, items)) + "]"
    print(f"pub(crate) const {name}: {kind} = {text};\n")


def input_tensor(name, value, doc):
    emit(name, value, f"Input: {doc}, `{list(value.shape)}`.")
    return value


def linear():
    x = input_tensor("LINEAR_X", draw(4, 3), "x").requires_grad_()
    layer = nn.Linear(3, 2)
    layer.weight.data = input_tensor("LINEAR_WEIGHT", draw(2, 3), "weight")
    layer.bias.data = input_tensor("LINEAR_BIAS", draw(2), "bias")
    dy = input_tensor("LINEAR_DY", draw(4, 2), "d loss / d y")
    y = layer(x)
    y.backward(dy)
    emit("LINEAR_Y", y, "`nn.Linear(3, 2)`.")
    emit("LINEAR_DX", x.grad, "d loss / d x.")
    emit("LINEAR_DWEIGHT", layer.weight.grad, "d loss / d weight.")
    emit("LINEAR_DBIAS", layer.bias.grad, "d loss / d bias.")


def batchnorm():
    # Columns far from zero, wide and narrow, so that neither mean nor variance can be forgotten.
    spread, centre = torch.tensor([1.0, 10.0, 0.1]), torch.tensor([0.0, 100.0, -3.0])
    x1 = input_tensor("BN_X1", torch.round(draw(5, 3) * spread + centre, decimals=3), "first batch")
    x2 = input_tensor("BN_X2", torch.round(draw(4, 3) * spread + centre, decimals=3), "second batch")
    dy = input_tensor("BN_DY", draw(5, 3), "d loss / d y of the first batch")
    gamma = input_tensor("BN_GAMMA", torch.tensor([1.5, -0.75, 2.0]), "weight")
    beta = input_tensor("BN_BETA", torch.tensor([0.25, -1.0, 0.5]), "bias")

    def layer(**options):
        bn = nn.BatchNorm1d(3, **options)
        if bn.affine:
            bn.weight.data, bn.bias.data = gamma.clone(), beta.clone()
        return bn

    bn = layer()
    x = x1.clone().requires_grad_()
    y = bn(x)
    y.backward(dy)
    emit("BN_Y", y, "`nn.BatchNorm1d(3)` in training, on the first batch.")
    emit("BN_DX", x.grad, "d loss / d x.")
    emit("BN_DGAMMA", bn.weight.grad, "d loss / d weight.")
    emit("BN_DBETA", bn.bias.grad, "d loss / d bias.")
    emit("BN_RUNNING_MEAN_1", bn.running_mean, "After the first batch, momentum 0.1.")
    emit("BN_RUNNING_VAR_1", bn.running_var, "After the first batch, momentum 0.1.")
    bn(x2)
    emit("BN_RUNNING_MEAN_2", bn.running_mean, "After both batches, momentum 0.1.")
    emit("BN_RUNNING_VAR_2", bn.running_var, "After both batches, momentum 0.1.")

    bn.eval()
    bn.zero_grad()
    x = x1.clone().requires_grad_()
    y = bn(x)
    y.backward(dy)
    emit("BN_EVAL_Y", y, "The same layer in evaluation after both batches, on the first batch.")
    emit("BN_EVAL_DX", x.grad, "d loss / d x, in evaluation.")
    emit("BN_EVAL_DGAMMA", bn.weight.grad, "d loss / d weight, in evaluation.")
    emit("BN_EVAL_DBETA", bn.bias.grad, "d loss / d bias, in evaluation.")

    bn = layer(momentum=None)
    bn(x1)
    bn(x2)
    emit("BN_CUMULATIVE_MEAN", bn.running_mean, "After both batches, `momentum=None`.")
    emit("BN_CUMULATIVE_VAR", bn.running_var, "After both batches, `momentum=None`.")

    x = x1.clone().requires_grad_()
    y = layer(affine=False, eps=0.01)(x)
    y.backward(dy)
    emit("BN_PLAIN_Y", y, "`nn.BatchNorm1d(3, affine=False, eps=0.01)` in training, on the first batch.")
    emit("BN_PLAIN_DX", x.grad, "d loss / d x.")


def losses():
    logits = input_tensor("XENT_LOGITS", draw(4, 5, scale=3.0), "logits").requires_grad_()
    labels = input_tensor("XENT_LABELS", torch.tensor([2, 0, 4, 2]), "labels")
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    emit("XENT_LOSS", loss.item(), "`nn.CrossEntropyLoss()`.")
    emit("XENT_GRADIENT", logits.grad, "d loss / d logits.")

    y = input_tensor("MSE_Y", draw(4, 2), "predictions").requires_grad_()
    t = input_tensor("MSE_T", draw(4, 2), "targets")
    loss = F.mse_loss(y, t)
    loss.backward()
    emit("MSE_LOSS", loss.item(), "`nn.MSELoss()`.")
    emit("MSE_GRADIENT", y.grad, "d loss / d predictions.")


def optimisers():
    start = input_tensor("STEP_START", draw(4), "parameters before the first step")
    gradients = input_tensor("STEP_GRADIENTS", draw(3, 4), "gradients of three steps")

    def run(name, make, doc):
        w = start.clone().requires_grad_()
        optimiser, after = make([w]), []
        for gradient in gradients:
            w.grad = gradient.clone()
            optimiser.step()
            after.append(w.detach().clone())
        emit(name, torch.stack(after), f"Parameters after each step of `{doc}`.")

    sgd, adam = torch.optim.SGD, torch.optim.Adam
    run("SGD_PLAIN", lambda w: sgd(w, lr=0.1), "SGD(lr=0.1)")
    run(
        "SGD_MOMENTUM",
        lambda w: sgd(w, lr=0.1, momentum=0.9, weight_decay=0.01),
        "SGD(lr=0.1, momentum=0.9, weight_decay=0.01)",
    )
    run(
        "SGD_NESTEROV",
        lambda w: sgd(w, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
        "SGD(lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)",
    )
    run("ADAM", lambda w: adam(w, lr=0.01), "Adam(lr=0.01)")
    run("ADAM_DECAY", lambda w: adam(w, lr=0.01, weight_decay=0.1), "Adam(lr=0.01, weight_decay=0.1)")


def stack():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    for name, parameter in model.named_parameters():
        shift = 1.0 if name == "1.weight" else 0.0
        rust = "STACK_" + name.upper().replace(".", "_")
        parameter.data = input_tensor(rust, draw(*parameter.shape, scale=0.5, shift=shift), f"`{name}`")
    x = input_tensor("STACK_X", draw(6, 3), "x").requires_grad_()
    labels = input_tensor("STACK_LABELS", torch.tensor([0, 2, 1, 1, 0, 2]), "labels")
    loss = F.cross_entropy(model(x), labels)
    loss.backward()
    emit("STACK_LOSS", loss.item(), "Cross-entropy of Linear(3, 4), BatchNorm1d(4), ReLU, Linear(4, 3), in training.")
    emit("STACK_DX", x.grad, "d loss / d x.")
    for name, parameter in model.named_parameters():
        emit("STACK_D" + name.upper().replace(".", "_"), parameter.grad, f"d loss / d `{name}`.")


print(f"//! Computed by PyTorch {torch.__version__.split('+')[0]} in f64 on a CPU; printed by `pytorch.py`, never edited.\n")
linear()
batchnorm()
losses()
optimisers()
stack()
