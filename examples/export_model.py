"""From training to a file that runs without fastnode: torch.export, and ONNX where it is installed.

A classifier of handwritten digits is trained without simulation for a moment and predicts by one
Euler step. Its forward pass is a graph of plain PyTorch operators, which torch.export writes to a
file. examples/serve.py, started as a process of its own, loads that file with PyTorch alone;
docs/export.md says what can be exported.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

from fastnode.datasets import load
from fastnode.nn import recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="train for 50 steps")
    parser.add_argument("--out", type=Path, help="folder for the files, by default a temporary one")
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    data, settings = load("digits"), recipe("digits")
    model = settings.build_simfree()
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr, weight_decay=0.0)
    for _ in range(50 if options.quick else 2000):
        rows = torch.randint(len(data.x_train), (64,))
        optimizer.zero_grad()
        model.loss(data.x_train[rows], data.y_train[rows]).total.backward()
        optimizer.step()

    model.eval().requires_grad_(False)
    x = data.x_test
    batch = torch.export.Dim("batch", max=65536)
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, out / "digits.pt2")
    if find_spec("onnxscript") is not None:
        torch.onnx.export(program, dynamo=True, verbose=False).save(out / "digits.onnx")
    torch.save({"x": x, "classes": model(x).argmax(dim=1)}, out / "expected.pt")
    accuracy = (model(x).argmax(dim=1) == data.y_test).float().mean().item()
    print(f"accuracy on the test set: {100 * accuracy:.1f} %; files in {out}")

    serve = Path(__file__).with_name("serve.py")
    subprocess.run([sys.executable, str(serve), str(out)], check=True)


if __name__ == "__main__":
    main()
