"""Results and figures of a run on 174 classes, as the notebooks write them, from random logits: nothing is learned."""

import json
from pathlib import Path

import numpy as np

from tcar import plots
from tcar.evaluate import metrics, over_seeds, paired_difference, reliability
from tcar.models.streams import stream_spec
from tcar.params import Params
from tcar.plots import attention, data, features, scores, training

CLASSES, CLIPS = 174, 1500
NAMES = [f"Moving something past something, in way number {number} of many" for number in range(CLASSES)]


def write_real_results(run: Params, seed: int = 0, epochs: int = 4) -> dict[str, dict]:
    """Write the seven result files of `run` and draw its figures; gives the results by stage."""
    draw = np.random.default_rng(seed)
    seeds, methods = run.training.seeds, run.training.methods
    labels = np.concatenate([np.arange(CLASSES), draw.integers(0, CLASSES, CLIPS - CLASSES)])

    def logits(gain: float) -> np.ndarray:
        made = draw.normal(size=(CLIPS, CLASSES))
        made[np.arange(CLIPS), labels] += gain
        return made

    predicted = {method: [logits(1 + 0.2 * place) for _ in seeds] for place, method in enumerate(methods)}
    scored = {
        method: [metrics(one, labels, names=NAMES, bootstrap_samples=50) for one in made]
        for method, made in predicted.items()
    }
    means = {method: over_seeds(made) for method, made in scored.items()}
    main = ("top1", "top5", "twin_accuracy", "ece")
    split = "validation"
    evaluation = {
        **means["cross_attention"], "classes": NAMES, "synthetic": False, "seeds": seeds, "headline": "cross_attention",
        "split": split,
        "methods": {
            method: {**{key: made[key] for key in main}, "per_group": {}, "per_group_twin_accuracy": {},
                     "trained_parameters": 8_443_566, "gflops": 3.2}
            for method, made in means.items()
        },
        "comparisons": [
            {"a": "cross_attention", "b": rival, **paired_difference(scored["cross_attention"], scored[rival], "top1")}
            for rival in methods if rival != "cross_attention"
        ],
        "calibration": {"ece": means["cross_attention"]["ece"], "temperatures": [1.0] * len(seeds)},
        "protocol": [
            {"views": views, "method": method, "top1": means[method]["top1"], "top5": means[method]["top5"],
             "clips": CLIPS}
            for views in ("1", "2x3") for method in methods
        ],
    }  # fmt: skip
    history = [{"epoch": e, "train_loss": 5.1 / e, "validation_loss": 5.2 / e, "validation_top1": 0.01 * e}
               for e in range(1, epochs + 1)]  # fmt: skip
    levels = [("heads", "8", "cross_attention"), ("heads", "16", "semantic"), ("fusion", "cross_attention", "motion"),
              ("fusion", "late_concat", "late_concat")]  # fmt: skip
    sizes = draw.lognormal(6.5, 0.8, CLASSES)
    balance = {name: dict(zip(NAMES, (sizes * share + 3).astype(int).tolist(), strict=True))
               for name, share in (("train", 1.0), ("validation", 0.15), ("test", 0.16))}  # fmt: skip
    streams = [
        {"name": name, "role": role, "frames": 8, "width": stream_spec(name).width, "grid": [8, 16, 16],
         "input_size": 224, "parameters": size, "trained_parameters": 0, "gflops": 50.0}
        for role, name, size in (("semantic", run.streams.semantic, 22_056_576), ("motion", run.streams.motion, 27e6))
    ]  # fmt: skip
    results = {
        "audit": {"clips": {name: sum(made.values()) for name, made in balance.items()}, "quarantined": [],
                  "classes": NAMES, "ceilings": {}, "leaks": {}, "twins": [], "synthetic": False},
        "extractors": {"streams": streams, "full_size": []},
        "fusion": {"attention_rows_sum_error": 1.23e-7, "fast_path_error": 0, "plans": []},
        "training": {"methods": {method: {"epochs": epochs, "converged": True} for method in methods}},
        "evaluation": evaluation,
        "ablations": {
            "rows": [{"factor": factor, "level": level, "seed": one, "trainable_parameters": 8_443_566, "gflops": 3.2,
                      "top1": means[of]["per_seed"]["top1"][place], "twin_accuracy": None}
                     for factor, level, of in levels for place, one in enumerate(seeds)],
            "summary": [{"factor": factor, "level": level, "top1": means[of]["top1"],
                         "twin_accuracy": means[of]["twin_accuracy"]} for factor, level, of in levels],
        },
        "interpretability": {"attention_on_moving": {}, "umap": {"neighbours": 15, "same_class_neighbours": 0.01}},
    }  # fmt: skip
    run.results_dir.mkdir(parents=True, exist_ok=True)
    for stage, values in results.items():
        (run.results_dir / f"{stage}.json").write_text(json.dumps(values))
    for name, figure in _figures(run, results, balance, predicted, labels, history, draw):
        plots.save(figure, run, name, {})
    return results


def _figures(run, results, balance, predicted, labels, history, draw):
    """The figures that the notebooks draw of such results, by name."""
    evaluation, confidence = results["evaluation"], run.evaluation.confidence
    methods = evaluation["methods"]
    noise = draw.integers(0, 256, (48, 6, 24, 32, 3), dtype=np.uint8)
    yield "contact_sheet", data.contact_sheet(dict(zip(NAMES, noise, strict=False)))
    yield "class_balance", data.class_balance(balance)
    unrest = {name: {"low": k / 9, "median": k / 6, "high": k / 5 + 1} for k, name in enumerate(NAMES)}
    yield "frame_differences", data.frame_differences(unrest)
    yield "methods", scores.methods(methods, ("top1", "top5"), confidence=confidence)
    yield "confusion", scores.confusion(evaluation["confusion"], NAMES)
    bins = reliability(predicted["cross_attention"][0], labels, 15)
    yield "reliability", scores.reliability(bins, bins)
    rows = results["ablations"]["rows"]
    yield "ablation_heads", scores.ablation(rows, "heads", ("top1",))
    yield "ablation_fusions", scores.ablation(rows, "fusion", ("top1",))
    curves = {method: {one: history for one in evaluation["seeds"]} for method in methods}
    yield "training_curves", training.curves(curves, {method: [3] * len(evaluation["seeds"]) for method in methods})
    called = [NAMES[label] for label in labels]
    yield "umap", attention.umap(draw.normal(size=(CLIPS, 2)), called, ["all"] * CLIPS)
    moments = [{"time": t / 8, "value": 0.1, "low": 0.0, "high": 0.2} for t in range(1, 8)]
    yield "temporal_importance", attention.temporal_importance({"all": moments})
    clips = [{"name": NAMES[k], "frames": noise[k], "maps": {"semantic": np.ones((8, 7, 7)), "motion": np.ones((4, 7, 7))}}
             for k in range(4)]  # fmt: skip
    yield "attention_spacetime", attention.attention_spacetime(clips)
    probes = [{"stream": role, "target": "class", "pooling": "averaged", "value": 0.3, "low": 0.2, "high": 0.4,
               "chance": 0.006} for role in ("semantic", "motion")]  # fmt: skip
    yield "stream_probes", features.stream_probes(probes, confidence=confidence)


def real_run(root: Path, **values) -> Params:
    """The run of params/ssv2.yaml in another folder."""
    import dataclasses

    from tcar import params

    file = Path(params.__file__).parents[2] / "params" / "ssv2.yaml"
    return dataclasses.replace(params.load(file, **{"bootstrap_samples": 50, **values}), root=root)
