import numpy as np
import pytest
import torch

from tcar.losses import build_loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0]])


def reference(logits, targets, smoothing):
    """Mean of -sum(target * log softmax), written out in float64 with numpy."""
    logits, targets = logits.double().numpy(), targets.double().numpy()
    targets = (1 - smoothing) * targets + smoothing / logits.shape[1]
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -(targets * log_probabilities).sum(axis=1).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("soft", [False, True])
def test_equals_the_formula_for_hard_and_soft_targets(smoothing, soft):
    labels = torch.tensor([0, 2])
    targets = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]]) if soft else torch.eye(3)[labels]
    value = build_loss(smoothing)(LOGITS, targets if soft else labels)
    assert value.item() == pytest.approx(reference(LOGITS, targets, smoothing), rel=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_impossible_smoothing_is_refused(smoothing):
    with pytest.raises(ValueError, match=f"label_smoothing is {smoothing}"):
        build_loss(smoothing)
