"""Training without simulation under Hugging Face Accelerate: one script for one process or many.

Accelerate wraps what its ``prepare`` is given and averages gradients of what the wrapper's forward
computed, so a model that is trained by its ``loss`` goes in as ``LossModule(model)``; evaluated and
saved is the model itself. Each process draws its own times and noise from its own generator.

    python examples/with_accelerate.py
    accelerate launch --cpu --num_processes 2 examples/with_accelerate.py
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.data import DataLoader, TensorDataset

from fastnode.datasets import load
from fastnode.nn import LossModule, recipe

try:
    from accelerate import Accelerator
except ImportError:
    raise SystemExit("this example needs Accelerate: pip install accelerate") from None


@torch.no_grad()
def accuracy(accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader) -> float:
    """Share of right answers by one step of Euler, over the samples of all processes."""
    model.eval()
    right = [accelerator.gather_for_metrics((model(x).argmax(1) == y).float()) for x, y in loader]
    model.train()
    return torch.cat(right).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two epochs only")
    epochs = 2 if parser.parse_args().quick else 40
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    data, settings = load("digits"), recipe("digits")
    torch.manual_seed(0)
    model = settings.build_simfree()
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr, weight_decay=0.0)
    generator = torch.Generator(accelerator.device).manual_seed(accelerator.process_index)
    training, optimizer, train, test = accelerator.prepare(
        LossModule(model),
        optimizer,
        DataLoader(TensorDataset(data.x_train, data.y_train), 128, shuffle=True),
        DataLoader(TensorDataset(data.x_test, data.y_test), 256),
    )
    for epoch in range(epochs):
        for x, y in train:
            optimizer.zero_grad()
            losses = training(x, y, generator)
            accelerator.backward(losses.total)
            optimizer.step()
        if (epoch + 1) % max(1, epochs // 5) == 0:
            share = accuracy(accelerator, model, test)
            accelerator.print(
                f"epoch {epoch + 1}: flow loss {losses.flow.item():.4f}, "
                f"test accuracy {100 * share:.1f} % by one step of Euler"
            )
    accelerator.end_training()


if __name__ == "__main__":
    main()
