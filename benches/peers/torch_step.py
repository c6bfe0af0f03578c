"""Training steps of PyTorch on the CPU, for `evenkeel bench step`, which asks line by line and compares in turns.

Prints one JSON object a line: first {"version": ..}, or {"missing": why} and ends. Then answers each line that it reads:
  {"widths": [784, 32, 32, 10], "batch": 32, "bn": true, "optimizer": "adam", "type": "f32", "threads": 1}  ->  {"ready": true}
  {"mode": "eager" | "fused", "steps": n}                                                                  ->  {"seconds": s}
Eight batches of normal numbers take turns; `eager` is the optimiser by default, `fused` the one with fused=True.
"""
import json
import sys
import time


def say(**what):
    print(json.dumps(what), flush=True)


try:
    import torch
    from torch import nn
except Exception as error:  # whatever keeps it from being imported
    say(missing=f"{type(error).__name__}: {error}")
    sys.exit(0)


def network(widths, bn):
    layers = []
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        layers.append(nn.Linear(inputs, outputs))
        if i + 2 < len(widths):
            layers += [nn.BatchNorm1d(outputs), nn.ReLU()] if bn else [nn.ReLU()]
    return nn.Sequential(*layers).train()


def stepper(job, fused):
    torch.manual_seed(1)
    dtype = {"f32": torch.float32, "f64": torch.float64}[job["type"]]
    model = network(job["widths"], job["bn"]).to(dtype)
    if job["optimizer"] == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=0.001, fused=fused or None)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001, fused=fused or None)
    x = [torch.randn(job["batch"], job["widths"][0], dtype=dtype) for _ in range(8)]
    y = [torch.randint(0, job["widths"][-1], (job["batch"],)) for _ in range(8)]

    def steps(count):
        for i in range(count):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x[i % 8]), y[i % 8]).backward()
            optimizer.step()

    steps(3)
    return steps


say(version=torch.__version__)
modes = {}
for line in sys.stdin:
    asked = json.loads(line)
    if "widths" in asked:
        torch.set_num_threads(asked["threads"])
        modes = {"eager": stepper(asked, False), "fused": stepper(asked, True)}
        say(ready=True)
    else:
        start = time.perf_counter()
        modes[asked["mode"]](asked["steps"])
        say(seconds=time.perf_counter() - start)
