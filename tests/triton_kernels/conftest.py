import os

import pytest
import torch


@pytest.fixture
def device():
    """Where kernels run here: on the GPU, or on the CPU under Triton's interpreter."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device; test_interpreted.py runs this test")
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fills new memory with NaN, so that an element that nobody writes is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


class Part:
    """What a launch asks of the driver before it compiles, without a GPU."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0


@pytest.fixture(params=[80, 90], ids=["sm_80", "sm_90"])
def part(request, monkeypatch):
    """Launches compile for this part, and tensors may be anywhere."""
    from triton.runtime import driver

    monkeypatch.setattr(driver, "_active", Part(request.param))
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: torch.no_grad())
    return request.param


@pytest.fixture
def random(device):
    """``random(*shape, dtype=, offset=)``: normal, ``offset`` elements into its storage."""
    generator = torch.Generator(device).manual_seed(0)

    def make(*shape: int, dtype: torch.dtype, offset: int = 0) -> torch.Tensor:
        size = torch.Size(shape)
        numbers = torch.randn(
            offset + size.numel(), generator=generator, device=device, dtype=torch.float64
        )
        return numbers.to(dtype)[offset:].view(size)

    return make


@pytest.fixture
def assert_as_good_as_torch():
    """Our error against float64 is at most twice that of plain PyTorch in the same dtype.

    The floor, two units in the last place of the largest number, is for what plain PyTorch gets
    right by luck, and for the reference's own rounding.
    """

    def check(ours: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> None:
        assert exact.dtype == torch.float64
        assert ours.shape == exact.shape
        floor = 2 * torch.finfo(ours.dtype).eps * exact.abs().max()
        error = (ours.double() - exact).abs().max()
        assert error <= 2 * (plain.double() - exact).abs().max() + floor

    return check
