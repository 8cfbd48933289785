import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tcar.models.fusion import FusionConfig, create_fusion
from tcar.params import Training
from tcar.tokens import TokenSet, TrainingError, token_set
from tcar.train import heads as training
from tcar.train.heads import Job, converged, fit, fit_many, improvement, logits

RECIPE = Training(label_smoothing=0.1, epochs=4, batch_size=16, warmup_epochs=1, learning_rate=0.01)


def fusion(kind="cross_attention", **change):
    size = {"semantic_width": 6, "motion_width": 5, "num_classes": 3, "width": 16, "heads": 2, "blocks": 1}
    return FusionConfig(kind=kind, **size | change)


def tokens(n=40, seed=0):
    """Tokens of three classes: class k raises channel k of both streams."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    streams = [rng.normal(size=(n, *shape)).astype(np.float16) for shape in ((8, 6), (4, 5))]
    for values in streams:
        values[np.arange(n), :, labels] += 1
    places = [rng.random((length, 3)).astype(np.float32) for length in (8, 4)]
    names = [f"clip-{seed}-{i}" for i in range(n)]
    return TokenSet(streams[0], places[0], streams[1], places[1], labels, names)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def splits():
    return tokens(40, seed=0), tokens(24, seed=1)


@pytest.fixture(scope="module")
def one(splits):
    return fit(fusion(), *splits, RECIPE, 3)


@pytest.fixture(scope="module")
def many(splits, tmp_path_factory):
    """Three jobs by two workers, the first and the last of them one and the same fit."""
    root = tmp_path_factory.mktemp("fits")
    jobs = [Job("a", fusion(), 3), Job("b", fusion("motion"), 4, epochs=2), Job("c", fusion(), 3)]
    return root, jobs, fit_many(jobs, *splits, RECIPE, root, workers=2)


def test_a_learnable_task_is_learned_and_the_kept_weights_are_those_of_the_best_epoch(splits, one):
    best = one.history[one.best_epoch - 1]
    assert [row["epoch"] for row in one.history] == [1, 2, 3, 4]
    assert best["validation_top1"] == max(row["validation_top1"] for row in one.history) > 0.9
    predicted = logits(one, splits[1])
    assert (predicted.argmax(1) == splits[1].labels).mean() == best["validation_top1"]
    loss = cross_entropy(torch.from_numpy(predicted), torch.from_numpy(splits[1].labels))
    assert loss.item() == pytest.approx(best["validation_loss"], rel=1e-6)


def test_a_plain_loop_gives_the_same_losses(splits):
    """Without dropout, against AdamW written out by hand in float64 over the whole history."""
    config, (train, validation) = fusion(dropout=0.0, drop_path=0.0), splits
    found = fit(config, train, validation, RECIPE, 7).history
    torch.manual_seed(7)
    model = create_fusion(config).double()
    decays = {f"{m}.weight" for m, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()}

    def forward(index):
        arrays = train.semantic[index], train.semantic_xyz, train.motion[index], train.motion_xyz
        return model(*(torch.from_numpy(a).double() for a in arrays))

    order, step, steps = torch.Generator().manual_seed(7), 0, math.ceil(40 / 16)
    for row in found:
        losses = []
        for index in torch.randperm(40, generator=order).split(16):
            targets = torch.from_numpy(np.eye(3)[train.labels[index]]) * 0.9 + 0.1 / 3
            loss = -(targets * forward(index.numpy()).log_softmax(1)).sum(1).mean()
            grads = dict(zip(moments, torch.autograd.grad(loss, list(model.parameters())), strict=True))
            shrink = min(1.0, 1 / (sum((g**2).sum() for g in grads.values()).sqrt().item() + 1e-6))
            if step < steps:
                rate = 0.01 * (step + 1) / steps
            else:
                rate = 0.005 * (1 + math.cos(math.pi * (step - steps) / (3 * steps)))
            step += 1
            for name, p in model.named_parameters():
                m, v = moments[name]
                m += 0.1 * (grads[name] * shrink - m)
                v += 0.001 * ((grads[name] * shrink) ** 2 - v)
                with torch.no_grad():
                    p -= rate * (0.05 if name in decays else 0) * p
                    p -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            losses.append(loss.item() * len(index))
        assert row["train_loss"] == pytest.approx(sum(losses) / 40, rel=1e-3)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_caller_alone(splits, one):
    torch.set_num_threads(2)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    again = fit(fusion(), *splits, RECIPE, 3)
    assert torch.equal(torch.rand(3), expected), "the caller's random state"
    assert torch.get_num_threads() == 2
    assert equal(again.state_dict, one.state_dict)
    assert again.history == one.history
    assert not equal(fit(fusion(), *splits, RECIPE, 4).state_dict, one.state_dict)


def test_equal_accuracy_goes_to_the_lower_loss_and_then_to_the_earlier_epoch(splits, monkeypatch):
    scripted = iter([(0.5, 1.0), (0.7, 0.9), (0.7, 0.8), (0.7, 0.8), (0.6, 0.1)])
    keys = ("validation_top1", "validation_loss")
    monkeypatch.setattr(training, "_validate", lambda *_: dict(zip(keys, next(scripted), strict=True)))
    rows = []
    assert fit(fusion(), *splits, RECIPE, 0, epochs=5, on_epoch=rows.append).best_epoch == 3
    assert len(rows) == 5


def test_fits_side_by_side_equal_a_fit_alone_and_one_worker_equals_two(splits, one, many, tmp_path):
    root, jobs, fits = many
    assert [len(done.history) for done in fits] == [4, 2, 4], "in the order of the jobs, epochs of their own"
    assert fits[1].fusion.kind == "motion"
    assert equal(fits[0].state_dict, one.state_dict)
    assert fits[0].best_epoch == one.best_epoch
    for row, kept in zip(one.history, fits[0].history, strict=True):
        assert kept == pytest.approx(row, rel=1e-9)
    assert len(list(root.iterdir())) == 2, "two different fits, and no temporary file"
    alone = fit_many(jobs[:2], *splits, RECIPE, tmp_path, workers=1)
    assert all(equal(a.state_dict, b.state_dict) for a, b in zip(alone, fits, strict=False))
    for folder in root.iterdir():
        for file in ("fit.json", "model.safetensors"):
            assert (folder / file).read_bytes() == (tmp_path / folder.name / file).read_bytes()


def test_a_kept_fit_is_loaded_and_not_trained_again(splits, many, monkeypatch):
    root, jobs, fits = many
    monkeypatch.setattr(training, "_train_all", lambda *_: pytest.fail("trained again"))
    renamed = [dataclasses.replace(job, name="another name") for job in reversed(jobs)]
    recipe = dataclasses.replace(RECIPE, seeds=[9], methods=["late_concat"], epochs_by_method={"motion": 30})
    again = fit_many(renamed, *splits, recipe, root)
    assert all(equal(a.state_dict, b.state_dict) for a, b in zip(again, reversed(fits), strict=True))
    assert [done.seconds for done in again] == [done.seconds for done in reversed(fits)]


def test_whatever_changes_the_result_changes_the_key(splits, many, monkeypatch):
    root, jobs, fits = many
    trained = []
    monkeypatch.setattr(training, "_train_all", lambda todo, *_: trained.extend(todo))
    monkeypatch.setattr(training, "_load", lambda *_: fits[0])
    job, (train, validation) = jobs[0], splits
    changes = [
        (job, train, validation, dataclasses.replace(RECIPE, weight_decay=0.1)),
        (job, train, validation, dataclasses.replace(RECIPE, epochs_by_method={"cross_attention": 5})),
        (dataclasses.replace(job, seed=5), train, validation, RECIPE),
        (dataclasses.replace(job, fusion=fusion(dropout=0.2)), train, validation, RECIPE),
        (job, tokens(40, seed=2), validation, RECIPE),
        (job, train, dataclasses.replace(validation, labels=validation.labels[::-1].copy()), RECIPE),
    ]
    for one_job, *given in changes:
        fit_many([one_job], *given, root)
    assert len(set(trained)) == len(changes)
    monkeypatch.setattr(training.results, "code_digest", lambda *modules: "other code")
    fit_many([job], *splits, RECIPE, root)
    assert len(set(trained)) == len(changes) + 1


def test_a_damaged_fit_is_named(splits, many):
    root, jobs, _ = many
    made_from = {f: json.loads((f / "fit.json").read_text())["made_from"] for f in root.iterdir()}
    folder = next(f for f, made in made_from.items() if made["seed"] == 4)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match=f"the fit in {folder} is damaged .*delete it"):
        fit_many(jobs[1:2], *splits, RECIPE, root)
    (folder / "model.safetensors").write_bytes(whole)


def test_a_loss_that_is_not_finite_ends_all_jobs_and_names_job_epoch_and_step(splits, tmp_path):
    broken = dataclasses.replace(splits[0], motion=splits[0].motion.copy())
    broken.motion[7] = np.inf
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3)).tolist()
    message = f"hopeless, epoch 1, step {order.index(7) // 16 + 1}: the loss is nan"
    with pytest.raises(TrainingError, match=message):
        fit_many([Job("hopeless", fusion(), 3)], broken, splits[1], RECIPE, tmp_path)
    assert list(tmp_path.iterdir()) == [], "nothing half done is kept"


def test_a_validation_loss_that_is_not_finite_is_no_best_epoch(splits):
    """One clip of 24 alone: its loss spoils the mean, and the accuracy of the others looks as good as ever."""
    broken = dataclasses.replace(splits[1], semantic=splits[1].semantic.copy())
    broken.semantic[5] = np.nan
    with pytest.raises(TrainingError, match="hopeless, epoch 1: the validation loss is nan; see whether"):
        fit(fusion(), splits[0], broken, RECIPE, 3, name="hopeless")


def test_what_does_not_fit_is_named(splits):
    train, validation = splits
    none = dataclasses.replace(validation, ids=[])
    cases = {
        "train clip clip-0-.* has label 2, num_classes is 2": (
            fusion(num_classes=2), train, validation, RECIPE),
        "semantic_width is 7, train tokens are 6 wide": (fusion(semantic_width=7), train, validation, RECIPE),
        "there are no validation clips": (fusion(), train, none, RECIPE),
        "epochs is 1, but must be above warmup_epochs, which is 1": (
            fusion(), train, validation, dataclasses.replace(RECIPE, epochs=1)),
    }  # fmt: skip
    for message, given in cases.items():
        with pytest.raises(TrainingError, match=f"cross_attention, seed 0: {message}"):
            fit(*given, 0)


def test_plateaus_are_told_from_rises():
    def history(values):
        return [{"validation_top1": float(v)} for v in values]

    rise, wave = np.linspace(0, 0.8, 40), 0.02 * np.sin(np.arange(40))
    flat = np.minimum(np.linspace(0, 2, 40), 0.8)
    assert not converged(history(rise + wave))
    assert converged(history(flat + wave))
    assert improvement(history(rise)) == pytest.approx(10 * 0.8 / 39)
    assert improvement(history(rise), window=20) == pytest.approx(20 * 0.8 / 39)
    assert converged(history(rise), threshold=0.5)
    assert not converged(history([0.5])), "too short to tell"


def store(ids, width):
    values = np.arange(len(ids) * 2 * width, dtype=np.float16).reshape(len(ids), 2, width)
    return SimpleNamespace(
        ids=ids, coordinates=np.zeros((2, 3), np.float32),
        root=Path(f"features/{width}"), values=values,
        load=lambda wanted: np.stack([values[ids.index(clip)] for clip in wanted]))  # fmt: skip


def test_token_set_joins_stores_by_id_in_the_order_of_the_clips(caplog):
    stores = store(["a", "b", "c"], 4), store(["d", "c", "a"], 3)
    clips = [SimpleNamespace(id=name, label=i) for i, name in enumerate(["c", "b", "a"])]
    made = token_set(*stores, clips)
    assert made.ids == ["c", "a"]
    assert made.labels.tolist() == [0, 2]
    assert made.semantic[:, 0, 0].tolist() == [16, 0]
    assert made.motion[:, 0, 0].tolist() == [6, 12]
    assert "1 of 3 clips have no features" in caplog.text
    with pytest.raises(TrainingError, match="none of 1 clips is in both feature stores"):
        token_set(*stores, [SimpleNamespace(id="z", label=0)])
    with pytest.raises(TrainingError, match="1 clips have no label, the first of them a"):
        token_set(*stores, [SimpleNamespace(id="a", label=None)])
    stores[1].values[1, 0, 2] = np.inf
    assert token_set(*stores, [clips[2]]).ids == ["a"]
    with pytest.raises(TrainingError, match="features/3: the tokens of clip c are not finite; verify the store"):
        token_set(*stores, clips)


def test_tokens_survive_the_way_to_another_process(tmp_path: Path):
    made = tokens()
    made.save(tmp_path / "shared")
    loaded = TokenSet.load(tmp_path / "shared")
    assert loaded.digest() == made.digest()
    np.testing.assert_array_equal(loaded.semantic, made.semantic)
    assert loaded.ids == made.ids
