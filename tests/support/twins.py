"""A few rendered twins, and a small model that has their classes."""

from pathlib import Path

import tiny
import torch

from tcar.fusion.kinds import FusionConfig
from tcar.models.tca import TCA
from tcar.tabletop.dataset import load_index, render_dataset
from tcar.tabletop.settings import TabletopSettings

CLASSES = [42, 40]  # closer, away: bound, with equal flow
DRAWN = TabletopSettings(classes=CLASSES, train_sets=1, validation_sets=1, test_sets=2, lengths=[24])
FRAMES = {"semantic": 4, "motion": 8}


def rendered(folder: Path) -> Path:
    """Render the twins; returns the dataset's folder."""
    return render_dataset(folder, DRAWN, seed=3, workers=1)


def test_clips(root: Path) -> list[str]:
    """The ids of the test clips, a twin after the other."""
    index = load_index(root)
    chosen = sorted(clip for clip, told in index.items() if told["split"] == "test")
    first = [clip for clip in chosen if index[clip]["class"] < index[index[clip]["twin"]]["class"]]
    return [one for clip in first for one in (clip, index[clip]["twin"])]


test_clips.__test__ = False


def model(root: Path, **changes) -> TCA:
    """A model of the small streams with fresh weights, whose classes are those of the dataset and one more."""
    names = (*sorted({told["class"] for told in load_index(root).values()}), "Doing nothing")
    sizes = {"num_classes": len(names), "width": 32, "heads": 4, "window": "time", "mlp_ratio": 2}
    fusion = FusionConfig(**(sizes | changes))
    torch.manual_seed(0)
    return TCA.create(tiny.config(fusion, names, FRAMES), pretrained=True).eval()
