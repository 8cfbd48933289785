import math

import pytest
import torch
from torchvision.transforms import v2

from tcar.train.losses import OrderHead, contrastive_alignment, temporal_order
from tcar.train.mixing import soft_targets


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_soft_targets_are_the_shares_of_the_two_labels():
    labels, other = torch.tensor([0, 2, 1]), torch.tensor([1, 2, 0])
    expected = torch.tensor([[0.75, 0.25, 0, 0], [0, 0, 1, 0], [0.25, 0.75, 0, 0]])
    assert torch.equal(soft_targets(labels, other, 0.75, 4), expected)
    expected[2] = torch.tensor([1.0, 0, 0, 0])  # a share for every clip
    assert torch.equal(soft_targets(labels, other, torch.tensor([0.75, 0.5, 0.0]), 4), expected)


@pytest.mark.parametrize("kind", [v2.MixUp, v2.CutMix])
def test_soft_targets_are_those_of_torchvisions_mixing(kind):
    """Clips of one constant value each: how much of the first is left in a mixed one can be read off its pixels."""
    torch.manual_seed(3)
    values, labels = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([1, 0, 3])
    frames = values[:, None, None, None].expand(3, 3, 16, 16).clone()
    mixed, targets = kind(num_classes=4, alpha=1.0)(frames, labels)
    others = values.roll(1)
    share = ((mixed.mean(dim=(1, 2, 3)) - others) / (values - others)).mean().item()
    assert 0.05 < share < 0.95
    torch.testing.assert_close(soft_targets(labels, labels.roll(1), share, 4), targets, atol=1e-5, rtol=0)


def slow_contrastive(semantic, motion, temperature):
    """Both directions of InfoNCE, one clip at a time in plain numbers."""

    def similarity(x, y):
        dot = sum(a * b for a, b in zip(x, y, strict=True))
        return dot / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y)) / temperature

    total = 0.0
    for i in range(len(semantic)):
        for one, other in ((semantic, motion), (motion, semantic)):
            total -= math.log(
                math.exp(similarity(one[i], other[i])) / sum(math.exp(similarity(one[i], x)) for x in other)
            )
    return total / (2 * len(semantic))


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_contrastive_loss_is_the_slow_reference(temperature):
    semantic, motion = random(5, 4), 3 * random(5, 4, seed=1)
    expected = slow_contrastive(semantic.tolist(), motion.tolist(), temperature)
    assert contrastive_alignment(semantic, motion, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_the_contrastive_loss_of_aligned_opposed_and_equal_embeddings():
    aligned = torch.eye(6, dtype=torch.float64)
    assert contrastive_alignment(aligned, 2 * aligned, 0.07).item() == pytest.approx(5 * math.exp(-1 / 0.07), rel=1e-4)
    assert contrastive_alignment(aligned, aligned.roll(1, 0), 0.07) > 1 / 0.07
    equal = torch.ones(6, 3)
    assert contrastive_alignment(equal, equal).item() == pytest.approx(math.log(6), rel=1e-6)


def test_the_contrastive_loss_knows_neither_the_order_of_clips_nor_that_of_streams_nor_lengths():
    semantic, motion, order = random(5, 4), random(5, 4, seed=1), torch.tensor([3, 0, 4, 1, 2])
    value = contrastive_alignment(semantic, motion)
    lengths = random(5, 1, seed=2).exp()
    for other in (
        contrastive_alignment(semantic[order], motion[order]),
        contrastive_alignment(motion, semantic),
        contrastive_alignment(semantic * lengths, motion),
    ):
        torch.testing.assert_close(other, value)
    assert (contrastive_alignment(semantic[order], motion) - value).abs() > 0.1


def test_the_gradients_of_the_contrastive_loss():
    inputs = [random(4, 3, seed=seed).requires_grad_() for seed in (0, 1)]
    assert torch.autograd.gradcheck(lambda a, b: contrastive_alignment(a, b, 0.2), inputs)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_are_compared_in_single(dtype, autocast):
    semantic, motion = (300 * random(8, 16, seed=seed).to(dtype) for seed in (0, 1))  # squares overflow float16
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = contrastive_alignment(semantic.requires_grad_(), motion, 0.01)
    expected = slow_contrastive(semantic.tolist(), motion.tolist(), 0.01)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.backward()
    assert semantic.grad.isfinite().all()


def test_the_order_loss_is_the_binary_cross_entropy_of_the_pair():
    forward, backward = random(6), random(6, seed=1)
    chances = [1 / (1 + math.exp(r - f)) for f, r in zip(forward.tolist(), backward.tolist(), strict=True)]
    expected = -sum(math.log(p) for p in chances) / 6
    assert temporal_order(forward, backward).item() == pytest.approx(expected, rel=1e-12)
    assert temporal_order(forward, forward).item() == pytest.approx(math.log(2), rel=1e-12)


def test_exchanging_forwards_and_reversed_exchanges_the_two_answers():
    for f, r in zip(random(6).split(1), random(6, seed=1).split(1), strict=True):
        right, wrong = temporal_order(f, r), temporal_order(r, f)
        assert math.exp(-right) + math.exp(-wrong) == pytest.approx(1, rel=1e-12)
        torch.testing.assert_close(temporal_order(f + 5, r + 5), right)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_extreme_scores_stay_finite_and_keep_their_gradients(dtype):
    forward = torch.tensor([6e4, -6e4], dtype=dtype, requires_grad=True)
    backward = torch.tensor([-6e4, 6e4], dtype=dtype)
    value = temporal_order(forward, backward)
    # One pair is certain and right, the other certain and wrong by a difference that float16 cannot hold.
    assert value.item() == pytest.approx(forward[0].item(), rel=1e-6)
    value.backward()
    assert forward.grad.tolist() == [0, -0.5]


def test_the_gradients_of_the_order_loss():
    inputs = [random(4, seed=seed).requires_grad_() for seed in (0, 1)]
    assert torch.autograd.gradcheck(temporal_order, inputs)


def test_an_order_head_learns_which_readouts_are_reversed():
    torch.manual_seed(0)
    head, direction = OrderHead(8), random(8, seed=5, dtype=torch.float32)
    forward = random(64, 8, dtype=torch.float32) + direction
    backward = random(64, 8, seed=1, dtype=torch.float32) - direction
    optimizer, losses = torch.optim.Adam(head.parameters(), lr=0.05), []
    for _ in range(30):
        losses.append(temporal_order(head(forward), head(backward)))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    fresh_forward = random(64, 8, seed=2, dtype=torch.float32) + direction
    fresh_backward = random(64, 8, seed=3, dtype=torch.float32) - direction
    assert (head(fresh_forward) > head(fresh_backward)).float().mean() > 0.85
    assert all(p.grad.abs().sum() > 0 for p in head.parameters() if p is not head.norm.bias)


def test_an_order_head_scores_the_normalised_readout():
    torch.manual_seed(0)
    head, readout = OrderHead(8).double(), 3 * random(5, 8) + 1
    centred = readout - readout.mean(dim=1, keepdim=True)
    normed = centred / ((centred**2).mean(dim=1, keepdim=True) + 1e-5).sqrt()
    expected = [sum(a * b for a, b in zip(row, head.linear.weight[0].tolist(), strict=True)) for row in normed.tolist()]
    assert head(readout).tolist() == pytest.approx(expected, rel=1e-9)
