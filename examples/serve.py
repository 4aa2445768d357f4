"""Predicts by what examples/export_model.py wrote to a folder, without fastnode.

python examples/serve.py FOLDER
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import torch


def main() -> None:
    folder = Path(sys.argv[1])
    expected = torch.load(folder / "expected.pt")
    x = expected["x"]

    model = torch.export.load(folder / "digits.pt2").module()
    with torch.no_grad():
        classes = model(x).argmax(dim=1)
    agree = int((classes == expected["classes"]).sum())
    print(f"digits.pt2 by torch {torch.__version__}: {agree} of {len(x)} predictions agree")

    if (folder / "digits.onnx").exists() and find_spec("onnxruntime") is not None:
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "digits.onnx")
        (values,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        agree = int((torch.from_numpy(values).argmax(dim=1) == expected["classes"]).sum())
        print(f"digits.onnx by onnxruntime: {agree} of {len(x)} predictions agree")
    assert "fastnode" not in sys.modules


if __name__ == "__main__":
    main()
