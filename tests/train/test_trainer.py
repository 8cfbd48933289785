"""The trainer against slow references: the loop, the step, the schedule, averaged weights, mixing, and refusals."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from token_task import CLASSES, FUSION, Recorder, run, token_task, tokens
from torch.nn.functional import cross_entropy

from tcar.data.augment import Mix
from tcar.fusion.kinds import create_fusion
from tcar.lab.params import ParameterError
from tcar.streams.grids import grid_coordinates
from tcar.train.checkpoints import Checkpoints
from tcar.train.losses import contrastive_alignment
from tcar.train.mixing import TokenMix, mix_frames, partners
from tcar.train.processes import Processes
from tcar.train.recipe import parameter_groups, reproducible
from tcar.train.stepping import Stepper, on_device, predict, validation_row
from tcar.train.trainer import train
from tcar.train.watch import TrainingError


def stepper(seed: int = 0, fusion=FUSION, **changes) -> Stepper:
    asked = run(**changes)
    torch.manual_seed(seed)
    return Stepper(token_task(asked, seed=seed, fusion=fusion), Processes(asked, False))


def gradients(made: Stepper, steps: int = 1) -> list[torch.Tensor]:
    """The gradients that the optimiser gets in the last of a few steps."""
    seen = []
    made.optimiser.optimizer.register_step_pre_hook(
        lambda *_: seen.append([parameter.grad.clone() for parameter in made.trained.values()])
    )
    do(made, steps)
    return seen[-1]


def on(made: Stepper, parts: list) -> list:
    return on_device(made.task, parts, made.processes.device)


def do(made: Stepper, steps: int) -> list:
    slices = made.slices(1)[:steps]
    batches = made.task.batches("train", sum(slices, []), 1, {})
    return [made.step(on(made, [next(batches) for _ in part]), number, 1) for number, part in enumerate(slices)]


def test_it_is_the_plain_loop(tmp_path):
    """Against a loop without slices, processes and shares: order, smoothing, decay, schedule, the short last batch."""
    asked, recorder = run(label_smoothing=0.1, weight_decay=0.2, clip_norm=0.5, epochs=3), Recorder()
    found = train(token_task(asked, seed=4), tmp_path, [recorder])
    data, order = tokens(78, 1), stepper(4, epochs=3)
    with reproducible(4):
        model = create_fusion(FUSION)
    optimiser = torch.optim.AdamW(parameter_groups(model, 0.2), 0.01)
    parts = [torch.optim.lr_scheduler.LinearLR(optimiser, 0.1, 1.0, 9),
             torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 20)]  # fmt: skip
    schedule, losses, rates = torch.optim.lr_scheduler.SequentialLR(optimiser, parts, [10]), [], []
    for epoch in (1, 2, 3):
        for (part,) in order.slices(epoch):
            inputs = data.floats(range(78))
            values = [inputs[0][part.places].float(), inputs[1], inputs[2][part.places].float(), inputs[3]]
            wanted = torch.nn.functional.one_hot(torch.from_numpy(data.labels[part.places]), CLASSES)
            loss = -((0.9 * wanted + 0.1 / CLASSES) * model(*values).log_softmax(1)).sum(1).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            losses.append(loss.item())
            rates.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            schedule.step()
    assert [row["loss"] for row in recorder.steps] == pytest.approx(losses, abs=1e-5)
    assert [row["learning_rate"] for row in recorder.steps] == pytest.approx(rates, abs=1e-9)
    assert found.history == recorder.epochs and recorder.ended == found.reason == "finished"
    last = stepper(4)
    last.learner.load_state_dict(Checkpoints(tmp_path).read(Checkpoints(tmp_path).newest()).weights, strict=False)
    trained = last.learner.model.fusion.eval()
    with torch.no_grad():
        torch.testing.assert_close(trained(*values), model.eval()(*values), atol=1e-4, rtol=1e-3)


def test_every_clip_is_seen_once_an_epoch_in_an_order_of_the_seed_and_the_epoch():
    made = stepper(accumulation=2)
    epochs = [[place for step in made.slices(epoch) for part in step for place in part.places] for epoch in (1, 2)]
    assert [sorted(places) for places in epochs] == [list(range(78))] * 2
    assert epochs[0] != epochs[1] and made.slices(1) == stepper(accumulation=2).slices(1) != stepper(1).slices(1)
    assert epochs[0] == [place for step in stepper(batch_size=16).slices(1) for part in step for place in part.places]


def test_four_batches_of_8_are_one_of_32():
    for changes in ({}, {"mixup": 0.8, "cutmix": 1.0}):
        added = gradients(stepper(accumulation=4, clip_norm=0.0, **changes))
        at_once = gradients(stepper(batch_size=32, clip_norm=0.0, **changes))
        assert max((a - b).abs().max().item() for a, b in zip(added, at_once, strict=True)) < 1e-6


def test_the_short_last_batch_counts_each_clip_alike():
    made = stepper(batch_size=32, accumulation=2, clip_norm=0.0)  # 64 clips, then 14: one slice of 14 and an empty one
    slices = made.slices(1)
    assert [[len(part.places) for part in step] for step in slices] == [[32, 32], [14, 0]]
    batches = list(made.task.batches("train", slices[1], 1, {}))
    found = made.step(on(made, batches), 0, 1)
    alone = stepper(batch_size=32, clip_norm=0.0)
    assert found.clips == 14
    assert found.norm == pytest.approx(alone.step(on(alone, batches[:1]), 0, 1).norm, rel=1e-5)


def test_clipping_scales_all_gradients_by_their_common_norm():
    free, clipped = gradients(stepper(clip_norm=0.0)), gradients(stepper(clip_norm=0.1))
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in free))
    assert norm > 0.2
    for a, b in zip(free, clipped, strict=True):
        torch.testing.assert_close(b, a * 0.1 / norm, atol=1e-6, rtol=1e-4)
    assert do(stepper(clip_norm=0.1), 1)[0].norm == pytest.approx(norm, rel=1e-5)


def test_averaged_weights_are_the_running_average():
    made = stepper(weight_averaging=0.7)
    slices = made.slices(1)[:6]
    batches, expected = made.task.batches("train", sum(slices, []), 1, {}), None
    for number in range(6):
        made.step(on(made, [next(batches)]), number, 1)
        now = [parameter.detach().double().clone() for parameter in made.trained.values()]
        expected = now if expected is None else [0.7 * e + 0.3 * n for e, n in zip(expected, now, strict=True)]
    for (name, value), wanted in zip(made.best().items(), expected, strict=True):
        torch.testing.assert_close(value.double(), wanted, atol=1e-6, rtol=1e-5, msg=name)
    raw = [parameter.clone() for parameter in made.trained.values()]
    scored = validation_row(*predict([made], {})[0])
    assert all(torch.equal(a, b) for a, b in zip(raw, made.trained.values(), strict=True))
    made.learner.model.load_state_dict(made.best(), strict=False)
    made.averaged = None
    assert validation_row(*predict([made], {})[0]) == scored


def test_norms_biases_and_positions_do_not_decay():
    model = create_fusion(dataclasses.replace(FUSION, positions="learned"))
    decay = {id(p): group["weight_decay"] for group in parameter_groups(model, 0.05) for p in group["params"]}
    kept = {name for name, p in model.named_parameters() if not decay[id(p)]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert (name in kept) == (parameter.ndim < 2 or "position" in name), name
    assert any("position" in name for name in kept)


def test_the_learning_rate_is_scaled_with_all_clips_of_a_step():
    assert stepper().rate == 0.01
    assert stepper(accumulation=4, learning_rate_clips=16).rate == pytest.approx(0.02)


def test_validation_is_that_of_each_clip():
    made = stepper(batch_size=4)
    data, logits = tokens(21, 2), []
    for clip in range(21):
        with torch.no_grad():
            inputs = data.floats([clip])[::2]
            logits.append(made.learner.model.eval()(*inputs)[0])
    logits, labels = torch.stack(logits), torch.from_numpy(data.labels)
    found = validation_row(*predict([made], {})[0])
    assert found["validation_loss"] == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-6)
    assert found["validation_top1"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert found["validation_top5"] == 1.0


def test_the_temperature_of_the_best_weights_is_kept_and_has_the_least_loss_on_validation(tmp_path):
    asked = run(weight_averaging=0.5, epochs=3)
    found = train(token_task(asked), tmp_path)
    made, data = stepper(), tokens(21, 2)
    made.learner.model.load_state_dict(found.state_dict, strict=False)
    with torch.no_grad():
        logits = made.learner.model.eval()(*data.floats(range(21))[::2]).double()
    labels, grid = torch.from_numpy(data.labels), torch.linspace(math.log(0.05), math.log(20), 4000).exp()
    losses = torch.stack([cross_entropy(logits / temperature, labels) for temperature in grid])
    assert found.calibration["temperature"] == pytest.approx(grid[losses.argmin()].item(), rel=0.005)
    assert (found.calibration["fitted_on"], found.calibration["clips"]) == ("validation", 21)
    # A training that is over and is opened again has it still.
    assert train(token_task(asked), tmp_path).calibration == found.calibration


def test_bf16_is_close_and_fp16_wants_a_gpu(tmp_path):
    rough, exact = do(stepper(precision="bf16"), 1)[0], do(stepper(), 1)[0]
    assert rough.loss != exact.loss
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)
    # A parameter file that names a CPU is refused; "auto" is known late, and accelerate would go on in fp32 there.
    with pytest.raises(ParameterError, match="precision is fp16, which a CPU does not train in"):
        run(precision="fp16")
    with pytest.raises(TrainingError, match="precision is fp16: a CPU has no such; set it to bf16 or fp32"):
        stepper(precision="fp16", device="auto")


def test_a_gradient_too_large_for_fp16_leaves_one_step_out_and_is_tried_at_a_lower_scale():
    """Half precision wants a GPU, but its scaler works on a CPU as well: it stands in here for that of accelerate."""
    made = stepper(weight_averaging=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, growth_interval=1000)
    made.accelerator.scaler, made.accelerator.native_amp = scaler, True
    made.accelerator.state._mixed_precision = "fp16"
    made.optimiser = AcceleratedOptimizer(torch.optim.AdamW(made.trained.values(), made.rate), scaler=scaler)
    made.accelerator._optimizers, made.peaks = [made.optimiser], [made.rate]
    slices, before = made.slices(1), {name: value.clone() for name, value in made.trained.items()}
    batches, norms, scales = made.task.batches("train", sum(slices, []), 1, {}), [], []
    for number in range(8):
        scales.append(made.loss_scale)
        norms.append(made.step(on(made, [next(batches)]), number, 1).norm)
        if not math.isfinite(norms[-1]):
            assert all(torch.equal(value, before[name]) for name, value in made.trained.items())
            assert int(made.averaged.n_averaged) == 0 and not made.lost(norms[-1])
    assert [math.isfinite(norm) for norm in norms] == sorted(math.isfinite(norm) for norm in norms)
    assert not math.isfinite(norms[0]) and math.isfinite(norms[-1])
    assert norms[-1] < 100  # of the gradient, not of the scaled one
    assert scales[1] == scales[0] / 2
    kept = made.snapshot({})
    assert kept.optimiser["scaler"]["scale"] == made.loss_scale
    scaler.update(1e-4)
    assert made.lost(math.inf) and not made.lost(1.0)


# --- mixing -------------------------------------------------------------------------------------------------


def test_partners_are_neighbours_in_the_total_batch():
    assert partners([0, 1, 2, 3]).tolist() == [1, 0, 3, 2]
    assert partners([8, 9, 11, 12]).tolist() == [1, 0, 2, 3]  # 10 and 13 are not there
    assert partners([]).tolist() == []


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_tokens_are_mixed_as_their_labels(kind):
    """Clips of zeros and of ones: the mean of the tokens is the share of the second clip, and so must be its label."""
    xyz = [grid_coordinates(grid).flatten(0, 1) for grid in ((2, 4, 4), (3, 4, 4))]
    alphas = {"mixup": 0.0, "cutmix": 0.0} | {kind: 1.0}
    mix = TokenMix(3, xyz, **alphas, probability=1.0, seed=5)
    streams = [torch.stack([torch.full((len(places), 2), float(k)) for k in (0, 1, 1)]) for places in xyz]
    shares = set()
    for step in range(20):
        mixed, targets = mix(streams, torch.tensor([0, 2, 2]), [0, 1, 2], 1, step)
        share = np.mean([stream[0].mean().item() for stream in mixed])
        wanted = [[1 - share, 0, share], [share, 0, 1 - share], [0, 0, 1]]
        torch.testing.assert_close(targets, torch.tensor(wanted, dtype=torch.float32))
        assert mixed[1][1].mean().item() == pytest.approx(1 - mixed[1][0].mean().item(), abs=1e-6)
        assert torch.equal(mixed[0][2], streams[0][2])  # it has no partner
        if kind == "cutmix":
            frame = mixed[0][0, :, 0].reshape(2, 4, 4)
            assert torch.equal(frame[0], frame[1]) and set(frame.unique().tolist()) <= {0.0, 1.0}
        shares.add(round(float(share), 6))
    assert len(shares) > 5
    again, _ = mix(streams, torch.tensor([0, 2, 2]), [0, 1, 2], 1, 19)
    assert torch.equal(again[0], mixed[0])


def test_frames_are_mixed_in_pairs_whoever_is_missing():
    frames = torch.stack([torch.full((2, 8, 8, 3), value, dtype=torch.uint8) for value in (0, 255, 0, 255)])
    labels, mix = torch.tensor([0, 1, 0, 1]), Mix(2, mixup=1.0, seed=3)
    mixed, targets = mix_frames(mix, frames, labels, [4, 5, 6, 7], 1, 9)
    torch.testing.assert_close(mixed.mean((1, 2, 3, 4)), targets[:, 1])
    assert 0.01 < targets[0, 1] < 0.99
    apart, _ = mix_frames(mix, frames[[1, 0]], labels[[1, 0]], [5, 4], 1, 9)
    assert torch.equal(apart[[1, 0]], mixed[:2])
    alone, whole = mix_frames(mix, frames[[0, 2, 3]], labels[[0, 2, 3]], [4, 6, 7], 1, 9)
    assert torch.equal(alone[1:], mixed[2:]) and alone[0].max() == 0 and whole[0].tolist() == [1.0, 0.0]


def test_mixed_labels_have_no_accuracy_in_training(tmp_path):
    asked, recorder = run(mixup=0.8, epochs=2), Recorder()
    train(token_task(asked), tmp_path, [recorder])
    assert all("train_top1" not in row and "validation_top1" in row for row in recorder.epochs)


# --- losses -------------------------------------------------------------------------------------------------


def test_aligned_streams_are_embedded_tokens_before_the_exchange():
    made = stepper(contrastive_weight=0.3, label_smoothing=0.0)
    (part,) = made.slices(1)[0]
    (batch,) = on(made, list(made.task.batches("train", [part], 1, {})))
    fusion = made.learner.model.fusion
    with torch.no_grad():
        loss, terms, logits = made.learner(batch.inputs, batch.labels)
        embedded = [fusion.embed[name](tokens.float(), None).mean(1)
                    for name, tokens in zip(("semantic", "motion"), batch.inputs, strict=True)]  # fmt: skip
    assert terms["contrastive"].item() == pytest.approx(contrastive_alignment(*embedded).item(), rel=1e-5)
    whole = cross_entropy(logits, batch.labels) + 0.3 * terms["contrastive"]
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "fusion", "message"),
    [
        ({"order_weight": 0.1, "task": "clips"}, FUSION, "order_weight needs clips"),
        ({"contrastive_weight": 0.1}, dataclasses.replace(FUSION, kind="late_concat_raw"), "contrastive_weight needs"),
        ({}, dataclasses.replace(FUSION, num_classes=3), "have classes that the model of 3 does not have, such as 4|3"),
        ({}, dataclasses.replace(FUSION, motion_width=12), "motion_width is 12, the tokens are 10 wide"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, fusion, message):
    with pytest.raises(TrainingError, match=message):
        stepper(fusion=fusion, **changes)
