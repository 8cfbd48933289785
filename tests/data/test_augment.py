"""Views of clips: the same for the same name, alike in all frames, and true to the class that a mirror changes."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tcar.data.augment import Augment, Mix
from tcar.data.sampling import view_seed
from tcar.data.views import AugmentConfig

MIRRORED = {1: 2, 2: 1}
EVERYTHING = AugmentConfig(32, flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), operations=2, magnitude=9, erase=0.5)


def clips(count=4, frames=3, height=40, width=56, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, frames, 5, 7, 3), dtype=torch.uint8, generator=generator)
    return list(coarse.repeat_interleave(height // 5, dim=2).repeat_interleave(width // 7, dim=3))


def labels(*values):
    return torch.tensor(values)


def test_a_view_is_the_clip_s_own_whatever_the_batch():
    augment, batch, ids = Augment(EVERYTHING, MIRRORED, seed=3), clips(), list("abcd")
    views, classes = augment(batch, labels(0, 1, 2, 3), ids, epoch=5)
    torch.manual_seed(99)
    torch.rand(17)  # what the global generator does is of no account
    alone, own = augment(batch[2:3], labels(2), ids[2:3], epoch=5)
    assert views.shape == (4, 3, 32, 32, 3)
    assert torch.equal(alone[0], views[2]) and own[0] == classes[2]
    for other in (augment(batch, labels(0, 1, 2, 3), ids, epoch=6)[0],
                  augment(batch, labels(0, 1, 2, 3), ids, epoch=5, view=1)[0],
                  Augment(EVERYTHING, MIRRORED, seed=4)(batch, labels(0, 1, 2, 3), ids, epoch=5)[0]):  # fmt: skip
        assert not torch.equal(other, views)


@pytest.mark.usefixtures("unchecked")  # the type checker draws as well
def test_the_global_generators_are_left_alone():
    def drawn():
        return torch.rand(3).tolist(), random.random(), np.random.random()  # noqa: NPY002

    def start():
        torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002

    augment = Augment(EVERYTHING, MIRRORED)  # the first one imports timm, which may draw
    start()
    expected = drawn()
    start()
    augment(clips(1), labels(0), ["a"], epoch=0)
    Mix(4)(torch.stack(clips(2)), labels(0, 1), epoch=0, step=0)
    assert drawn() == expected


def test_all_frames_of_a_clip_change_alike():
    still = [clip[:1].expand(5, -1, -1, -1) for clip in clips(12, frames=1)]
    config = replace(EVERYTHING, erase=0.0)  # an erased box shows other noise in every frame
    views, _ = Augment(config, {})(still, torch.zeros(12, dtype=int), list("abcdefghijkl"), epoch=0)
    assert torch.equal(views, views[:, :1].expand_as(views))
    assert len({view[0].numpy().tobytes() for view in views}) == 12


def test_the_whole_frame_is_resized_as_pillow_does():
    config = AugmentConfig(24, scale=(1.0, 1.0), ratio=(56 / 40, 56 / 40))
    batch = clips(2)
    views, _ = Augment(config, {})(batch, labels(0, 0), ["a", "b"], epoch=0)
    for view, clip in zip(views, batch, strict=True):
        for found, frame in zip(view, clip, strict=True):
            wanted = np.asarray(Image.fromarray(frame.numpy()).resize((24, 24), Image.Resampling.BILINEAR))
            assert np.abs(found.numpy().astype(int) - wanted).max() <= 2  # Pillow rounds between its two passes


def test_crops_stay_within_their_share_and_aspect():
    """A ramp of coordinates as colours tells where a crop lay."""
    rows, columns = torch.meshgrid(torch.arange(200), torch.arange(240), indexing="ij")
    ramp = torch.stack([rows, columns, 0 * rows], dim=-1).to(torch.uint8)[None]
    config = AugmentConfig(64, scale=(0.2, 0.5), ratio=(0.8, 1.25))
    views, _ = Augment(config, {})([ramp] * 40, torch.zeros(40, dtype=int), [str(i) for i in range(40)], epoch=0)
    spans = views[:, 0, :, :, :2].flatten(1, 2).float()
    height, width = (spans.amax(1) - spans.amin(1) + 2).unbind(1)
    assert ((height * width > 0.17 * 200 * 240) & (height * width < 0.54 * 200 * 240)).all()
    assert ((width / height > 0.75) & (width / height < 1.35)).all()
    assert len(set(height.tolist())) > 5


def test_a_mirrored_clip_has_the_class_of_its_mirror_image():
    config = AugmentConfig(40, scale=(1.0, 1.0), ratio=(56 / 40, 56 / 40), flip=0.5)
    plain = Augment(AugmentConfig(40, scale=(1.0, 1.0), ratio=(56 / 40, 56 / 40)), MIRRORED)
    count, ids = 200, [f"clip {i}" for i in range(200)]
    batch, given = clips(1) * count, torch.arange(count) % 4
    found, classes = Augment(config, MIRRORED)(batch, given, ids, epoch=2)
    straight, same = plain(batch, given, ids, epoch=2)
    assert torch.equal(same, given)
    flipped = torch.tensor([not torch.equal(a, b) for a, b in zip(found, straight, strict=True)])
    assert torch.equal(found[flipped], straight[flipped].flip(-2))
    swap = torch.tensor([0, 2, 1, 3])
    assert torch.equal(classes, torch.where(flipped, swap[given], given))
    assert 70 < flipped.sum() < 130  # half of 200, within four standard deviations


def test_mirrored_classes_must_lead_back():
    with pytest.raises(ValueError, match="must lead back"):
        Augment(AugmentConfig(), {1: 2})


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_pixels_and_labels_are_mixed_in_the_same_share(kind):
    frames, given = torch.stack(clips(4, height=40, width=56)), labels(0, 1, 2, 3)
    other = torch.tensor([3, 0, 1, 2])  # each clip and its neighbour
    mix = Mix(4, mixup=float(kind == "mixup"), cutmix=float(kind == "cutmix"), seed=1)
    for step in range(6):
        mixed, targets = mix(frames, given, epoch=0, step=step)
        assert mixed.shape == frames.shape and mixed.dtype == torch.float32
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        share = targets[0, 0]
        torch.testing.assert_close(targets, share * torch.eye(4) + (1 - share) * torch.eye(4)[other])
        own, neighbour = frames / 255, frames[other] / 255
        if kind == "mixup":
            torch.testing.assert_close(mixed, share * own + (1 - share) * neighbour)
        else:
            taken = (mixed != own).any(dim=-1)
            assert torch.equal(mixed[taken], neighbour[taken])
            box = (mixed == neighbour).all(dim=-1).all(dim=0).all(dim=0)  # one box in all frames and clips
            assert box.double().mean().item() == pytest.approx(1 - share.item(), abs=1e-4)


def test_mixing_happens_as_often_as_asked_and_is_named_by_its_step():
    frames, given = torch.stack(clips(2)), labels(0, 1)
    mix = Mix(3, mixup=0.8, cutmix=1.0, probability=0.5)
    steps = [mix(frames, given, epoch=1, step=step) for step in range(100)]
    whole = [torch.equal(targets, torch.eye(3)[given]) for _, targets in steps]
    assert 25 < sum(whole) < 75
    again = mix(frames, given, epoch=1, step=7)
    assert all(map(torch.equal, again, steps[7]))
    still, targets = Mix(3, mixup=0.0, cutmix=0.0)(frames, given, epoch=0, step=0)
    assert torch.equal(still, frames / 255) and torch.equal(targets, torch.eye(3)[given])


def test_a_mirrored_clip_brings_its_new_class_into_a_mixture():
    config = AugmentConfig(40, flip=1.0)
    views, classes = Augment(config, MIRRORED)(clips(2), labels(1, 0), ["a", "b"], epoch=0)
    _, targets = Mix(3, mixup=0.8)(views, classes, epoch=0, step=0)
    assert targets[0, 1] == 0 and targets[0, 2] > 0 and targets[1, 2] > 0


def test_seeds_of_views_differ_and_stay():
    seeds = {view_seed(s, name, e, v) for s in (0, 1) for name in ("1", "11") for e in (0, 1, 11) for v in (0, 1)}
    assert len(seeds) == 24 and all(0 <= seed < 2**63 for seed in seeds)
    assert view_seed(0, "78687", 3, 1) == 4437254542844594653


@pytest.mark.parametrize(("given", "message"), [
    ({"flip": 1.5}, r"AugmentConfig.flip must lie in \[0, 1\], got 1.5"),
    ({"scale": (0.5, 0.2)}, "scale .* must ascend"),
    ({"magnitude": 11}, "magnitude must lie"),
    ({"jitter": (0.0, 0.0, 0.0, 0.6)}, "hue at most 0.5"),
])  # fmt: skip
def test_impossible_settings_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**given)


def test_batches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 clips, 1 labels and 2 ids"):
        Augment(AugmentConfig(), {})(clips(2), labels(0), ["a", "b"], epoch=0)
    with pytest.raises(ValueError, match=r"labels \[0, 3\] must lie in 0 … 2"):
        Mix(3)(torch.stack(clips(2)), labels(0, 3), epoch=0, step=0)
    with pytest.raises(ValueError, match="probability 2"):
        Mix(3, probability=2)
