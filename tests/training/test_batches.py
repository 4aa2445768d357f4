import pytest
import torch

from fastnode.training.batches import Batches, augment, derive_seed


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (12, 4), (3, 8), (5, 5)])
def test_every_epoch_shows_each_row_once(size, batch):
    batches = Batches(size, batch, seed=3, rank=0, processes=1)
    steps = 4 * size
    rows = torch.cat([batches.indices(step) for step in range(steps)])
    assert len(rows) == steps * batch
    epochs = rows.reshape(-1, size)
    assert (epochs.sort(1).values == torch.arange(size)).all()
    assert len(epochs.unique(dim=0)) > 1, "epochs must differ"


def test_a_batch_depends_on_seed_and_step_alone():
    def rows(step, seed=3):
        return Batches(100, 32, seed, rank=0, processes=1).indices(step)

    walked = Batches(100, 32, 3, rank=0, processes=1)
    for step in range(10):
        assert torch.equal(walked.indices(step), rows(step))
    assert not torch.equal(rows(0), rows(0, seed=4))


def test_processes_share_the_batch_of_one_process():
    whole = Batches(100, 32, 0, rank=0, processes=1).indices(5)
    parts = [Batches(100, 32, 0, rank, 4).indices(5) for rank in range(4)]
    assert all(len(part) == 8 for part in parts)
    assert torch.equal(torch.cat(parts).sort().values, whole.sort().values)


def test_seeds_differ_by_every_argument():
    seeds = {
        derive_seed(seed, purpose, index, rank)
        for seed in range(3)
        for purpose in ("step", "epoch")
        for index in range(3)
        for rank in range(2)
    }
    assert len(seeds) == 36


def test_augment_crops_the_padded_image_and_flips():
    generator = torch.Generator().manual_seed(0)
    images = 1 + torch.arange(6 * 2 * 5 * 7.0).reshape(6, 2, 5, 7)
    seen = set()
    for _ in range(20):
        crops = augment(images, generator)
        assert crops.shape == images.shape
        for image, crop in zip(images, crops, strict=True):
            padded = torch.nn.functional.pad(image, (4,) * 4)
            matches = [
                (down, right, flip)
                for down in range(9)
                for right in range(9)
                for flip in (False, True)
                if torch.equal(
                    padded[:, down : down + 5, right : right + 7],
                    crop.flip(2) if flip else crop,
                )
            ]
            assert matches
            seen.update(matches)
    assert {flip for *_, flip in seen} == {False, True}
    assert {down for down, *_ in seen} == set(range(9)) == {right for _, right, _ in seen}
