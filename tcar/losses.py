"""The training loss."""

from torch import nn


def build_loss(label_smoothing: float = 0.0) -> nn.CrossEntropyLoss:
    """Cross entropy over logits `[b c]`, averaged over the batch, with smoothed targets.

    Targets are class indices `[b]` or class probabilities `[b c]` (mixed labels, a teacher's distribution).
    Smoothing by s trains towards (1 - s) * target + s / c (Szegedy et al. 2016, arXiv:1512.00567).

    Raises:
        ValueError: `label_smoothing` is not in [0, 1).
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}, but must be at least 0 and below 1")
    return nn.CrossEntropyLoss(label_smoothing=label_smoothing)
