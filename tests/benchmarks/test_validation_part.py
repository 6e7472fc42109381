"""Settings are chosen on training images alone."""

import torch
from benchmarks.validation_part import write_idx, write_parts

from hushgrad.study.tasks import TaskOptions, load_task


def pixels(examples):
    return {tuple((255 * image).round().int().flatten().tolist()) for image in examples.tensors[0]}


def test_the_validation_part_holds_training_images_alone_each_of_them_once(tmp_path):
    images = torch.randint(0, 256, (50, 3, 4), generator=torch.Generator().manual_seed(0))
    write_idx(tmp_path / "t10k-images-idx3-ubyte", images)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", torch.arange(50) % 10)
    whole = load_task("mnist", TaskOptions(data=tmp_path))
    assert write_parts(tmp_path, tmp_path / "parts") == (32, 8)
    parts = load_task("mnist", TaskOptions(data=tmp_path / "parts"))
    assert (len(parts.train), len(parts.test)) == (32, 8)
    assert pixels(parts.train) | pixels(parts.test) == pixels(whole.train)
    assert not pixels(parts.train) & pixels(parts.test)
    assert not pixels(parts.test) & pixels(whole.test)
    label_of = {tuple(image.flatten().tolist()): int(label) for image, label in zip(*whole.train.tensors, strict=True)}
    for image, label in zip(*parts.test.tensors, strict=True):
        assert label_of[tuple(image.flatten().tolist())] == int(label)
