"""The figure of the readout: numbers stand beside their points, and one label has those that lie together."""

import numpy as np

from tcar.lab.plots import attention


def test_classes_that_lie_together_share_a_label_and_no_label_lies_on_a_point():
    middles = {"a": (0, 0), "b": (10, 10), "c": (0.1, 0.1), "d": (10, 0)}
    points = np.array([middles[name] for name in middles for _ in range(3)], float)
    names = [name for name in middles for _ in range(3)]
    figure = attention.umap(points, names, ["motion"] * len(names))
    figure.draw_without_rendering()
    labels = {text.get_text(): text for text in figure.axes[0].texts[:-1]}
    assert list(labels) == ["1, 3", "2", "4"]
    places = figure.axes[0].transData.transform(points)
    for text in labels.values():
        assert not any(text.get_window_extent().contains(*place) for place in places)
