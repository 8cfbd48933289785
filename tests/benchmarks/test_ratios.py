"""How fast the parts are, as ratios of two things measured side by side in one run (`make benchmark`)."""

import time

import pytest
import torch

from tcar.fusion.blocks import attend
from tcar.fusion.kinds import FusionConfig, create_fusion
from tcar.streams.grids import grid_coordinates
from tcar.tabletop import dataset
from tcar.tabletop.scene import render


def best_of(function, repeats: int = 5) -> float:
    """The shortest processor time of a few calls, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def test_rendering_against_the_encoder_alone(tmp_path, capsys):
    plan = dataset.plan_sets(dataset.chosen_families([93, 94, 86, 87]), dict.fromkeys(dataset.SPLITS, 1), 0)[0]
    scene = dataset.draw(plan)[93]
    frames = render(scene).frames
    drawn = best_of(lambda: render(scene))
    encoded = best_of(lambda: dataset.write_video(tmp_path / "clip.webm", frames, 12))
    with capsys.disabled():
        print(f"\n{len(frames)} frames: {1 / (drawn + encoded):.1f} clips/s on one core; "
              f"rendering takes {drawn / encoded:.2f} times the encoder's time")


@pytest.mark.parametrize("heads", [4, 8, 16])
def test_reading_in_place_against_the_masked_kernel(heads, capsys):
    torch.set_num_threads(1)
    q, k, v = (torch.randn(24, n, 64, requires_grad=True) for n in (64, 32, 32))
    mask = torch.arange(64)[:, None] % 16 == torch.arange(32) % 16

    def step(places: int) -> None:
        attend(q, k, v, heads, mask, places=places)[0].sum().backward()

    masked, in_place = (best_of(lambda p=places: step(p), 20) for places in (0, 16))
    with capsys.disabled():
        print(f"\n{heads} heads, forward and backward: the masked kernel takes {masked / in_place:.2f} times as long")


@pytest.mark.parametrize("kind", ["cross_attention", "late_concat"])
def test_fast_path_against_explicit_weights(kind, capsys):
    torch.set_num_threads(1)
    fusion = create_fusion(FusionConfig(kind=kind, semantic_width=128, motion_width=128, num_classes=18, width=64,
                                        heads=4, mlp_ratio=2)).eval()
    places = [grid_coordinates(grid).reshape(-1, 3) for grid in ((8, 3, 4), (4, 3, 4))]
    inputs = torch.randn(32, len(places[0]), 128), places[0], torch.randn(32, len(places[1]), 128), places[1]
    with torch.inference_mode():
        fast, explicit = (best_of(lambda w=w: fusion(*inputs, return_intermediates=w)) for w in (False, True))
    with capsys.disabled():
        print(f"\n{kind}: explicit weights take {explicit / fast:.2f} times the fast path "
              f"({1000 * fast / 32:.2f} ms a clip)")
