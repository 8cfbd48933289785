"""What a run will take, against arithmetic by hand, committed results, and a process that was really measured."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tcar.lab import counts, demand, params, plan

ROOT = Path(__file__).parents[2]
SMALL = {"methods": ["cross_attention", "motion"], "seeds": [0, 1], "epochs_by_method": {"motion": 20},
         "ablation_heads": [4, 8], "ablation_fusions": ["cross_attention"], "ablation_seeds": [1, 2, 3]}  # fmt: skip


def test_the_clips_of_the_demo_are_those_that_its_audit_found():
    audited = json.loads((ROOT / "paper" / "results" / "audit.json").read_text())
    run = params.load(ROOT / "params" / "demo.yaml", data_root="not/there")
    assert counts.clips(run) == audited["clips"]
    assert counts.class_count(run) == len(audited["classes"])


def test_each_configuration_is_trained_once_with_the_seeds_of_all_who_ask(project):
    found = {(each.fusion.kind, each.fusion.heads): each for each in demand.trainings(params.from_values(SMALL))}
    assert {key: (each.epochs, each.seeds) for key, each in found.items()} == {
        ("cross_attention", 4): (14, 4),  # seeds 0 and 1 of the methods, 1 to 3 of the ablations
        ("motion", 4): (20, 4),
        ("cross_attention", 8): (14, 3),
        ("semantic", 4): (14, 3),
    }


def test_every_training_of_the_demo_is_counted():
    """Five methods and two more numbers of heads, three seeds each, with the epochs that training.json states."""
    made = json.loads((ROOT / "paper" / "results" / "training.json").read_text())["methods"]
    epochs = sum(row["epochs"] * len(row["seeds"]) for row in made.values()) + 2 * 3 * 14
    run = params.load(ROOT / "params" / "demo.yaml")
    assert sum(each.epochs * each.seeds for each in demand.trainings(run)) == epochs
    trained = json.loads((ROOT / "paper" / "results" / "evaluation.json").read_text())["methods"]
    for each in demand.trainings(run)[:5]:
        assert demand.cost(run, each.fusion)["trained_parameters"] == trained[each.fusion.kind]["trained_parameters"]


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """What tests/benchmarks/gpu.py wrote of a card, whose fusion is that of params/ssv2.yaml."""
    values = {"from_files": {"dinov2_vits14": {"clips_per_second": 200.0}, "i3d_r50": {"clips_per_second": 100.0}},
              "training": {"batch": 256, "seconds": 0.032}}  # fmt: skip
    (tmp_path / "A_card.json").write_text(json.dumps(values))
    monkeypatch.setattr(plan, "BENCHMARKS", tmp_path)
    return "A card"


def real(**values) -> params.Params:
    return params.load(ROOT / "params" / "ssv2.yaml", data_root="not/there", **values)


def test_hours_are_work_over_measured_speed(benchmark):
    """Of one method and one seed: 168,913 clips, 30 epochs, 256 clips in 32 ms."""
    alone = {"methods": ["cross_attention"], "seeds": [0], "ablation_seeds": [0], "ablation_heads": [],
             "ablation_fusions": []}  # fmt: skip
    run = real(**alone)
    extraction, views, training = demand.hours(run, benchmark)
    assert views.hours == pytest.approx(extraction.hours * 6 * 24_777 / 220_847)
    assert extraction.hours == pytest.approx(220_847 * (1 / 200 + 1 / 100) / 3600)
    costs = {each.fusion.kind: demand.cost(run, each.fusion)["gflops"] for each in demand.trainings(run)}
    assert set(costs) == {"cross_attention", "semantic", "motion"}  # the streams alone are an ablation always
    alone = 168_913 * 30 / 256 * 0.032 / 3600
    assert training.hours == pytest.approx(alone * sum(costs.values()) / costs["cross_attention"])
    assert "3 configurations, 90 epochs" in training.source
    assert "A card" in extraction.source and "A card" in training.source
    twice = demand.hours(dataclasses.replace(run, streams=dataclasses.replace(run.streams, views=2)), benchmark)
    assert twice[0].hours == pytest.approx(2 * extraction.hours)
    assert twice[1].hours == pytest.approx(views.hours)


def test_what_nobody_measured_is_unknown(benchmark, project):
    for found in demand.hours(real(), "another card"):
        assert found.hours is None
        assert "measured" in found.source
    vjepa = params.load(ROOT / "params" / "ssv2_vjepa2.yaml", data_root="not/there")
    assert demand.hours(vjepa, benchmark)[0].hours is None  # of one of its streams nothing is known
    small = dataclasses.replace(params.from_values({}), root=ROOT)
    assert demand.hours(small, benchmark)[1].hours is None  # a thousandth of the operations, and not of the time
    assert "of another size" in demand.hours(small, benchmark)[1].source


def test_steps_that_are_timed_here_give_hours(project):
    run = params.from_values({**SMALL, "device": "cpu", "batch_size": 4})
    training = demand.hours(run, measure=True)[1]
    assert training.hours > 0
    assert "measured here on cpu" in training.source


STEP = """
import resource, sys, torch
from tcar.lab import demand, params
run = params.load(sys.argv[1])
fusion = demand.trainings(run)[0].fusion
kept = demand.kept_for_backward(run, fusion)
model, inputs = demand.create_fusion(fusion).train(), demand._inputs(run, fusion, 8)
with torch.no_grad():
    model(*inputs)
def held():
    return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()
before = held()
result = model(*inputs)
print(8 * kept, held() - before)
"""


def test_what_a_step_keeps_is_what_a_process_grows_by():
    done = subprocess.run([sys.executable, "-c", STEP, str(ROOT / "params" / "ssv2.yaml")], capture_output=True,
                          text=True, check=True, cwd=ROOT)  # fmt: skip
    estimated, grown = map(int, done.stdout.split())
    assert estimated > 1e8
    assert 0.7 < estimated / grown < 1.4, (estimated, grown)


def test_memory_grows_with_the_batch_and_lies_where_the_work_is_done(project):
    few, many = (demand.memory(params.from_values({**SMALL, "batch_size": size}), False) for size in (24, 2400))
    assert [peak.work for peak in few] == ["extraction", "training"]
    assert few[0] == many[0]
    assert many[1].host - demand.PROCESS > 10 * (few[1].host - demand.PROCESS)
    assert many[1].device == 0
    on_card = demand.memory(params.from_values({**SMALL, "batch_size": 2400}), True)[1]
    assert on_card.device + demand.PROCESS > on_card.host
    assert on_card.host < many[1].host


def test_a_training_keeps_three_snapshots_and_its_best_weights(project):
    """Of weights, two moments and with averaging their average; all begin one more beside those that are kept."""
    one = {**SMALL, "ablation_heads": [], "seeds": [0], "ablation_seeds": [0]}
    run = params.from_values(one)
    sizes = [demand.cost(run, each.fusion)["trained_parameters"] for each in demand.trainings(run)]
    assert len(sizes) == 3
    assert demand.checkpoint_bytes(run) == sum(4 * size * (1 + 4 * 3) for size in sizes)
    averaged = params.from_values({**one, "weight_averaging": 0.99})
    assert demand.checkpoint_bytes(averaged) == sum(4 * size * (1 + 4 * 4) for size in sizes)


def test_what_a_card_does_in_company_counts_before_single_steps(benchmark):
    """Five heads, 4,096 clips, an epoch of 8 seconds: the heads of params/ssv2.yaml."""
    values = json.loads((plan.BENCHMARKS / "A_card.json").read_text())
    values["from_files"]["together"] = {"clips_per_second": 90.0}
    values["trainings"] = {"clips": 4096, "heads": 5, "seconds_in_company": 8.0}
    (plan.BENCHMARKS / "A_card.json").write_text(json.dumps(values | {"reading": {"audit": 250.0}}))
    run = real(seeds=[0], ablation_heads=[], ablation_fusions=[], ablation_seeds=[0])
    found = {each.work: each.hours for each in demand.hours(run, benchmark)}
    assert found["extraction"] == pytest.approx(220_847 / 90 / 3600)
    assert found["audit"] == pytest.approx(220_847 / 250 / 3600)
    assert found["training"] == pytest.approx(168_913 * 30 / 4096 * 8 / 3600)  # the five, and no other
