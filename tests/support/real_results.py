"""Results and figures of a run on 174 classes, as the notebooks write them, from random logits: nothing is learned."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from tcar.evaluate import Bootstrap, Scoring, metrics, over_seeds, paired_difference
from tcar.lab import params
from tcar.lab.params import Params
from tcar.streams.registry import stream_spec

CLASSES, CLIPS = 174, 400
SSV2 = Path(params.__file__).parents[3] / "params" / "ssv2.yaml"
NAMES = [f"Moving something past something, in way number {number} of many" for number in range(CLASSES)]


def write_real_results(
    run: Params, seed: int = 0, epochs: int = 4, split: str = "validation", gain: float = 1.0
) -> dict[str, dict]:
    """Write the seven result files of `run`; gives the results by stage. `gain` is how much is known of the classes."""
    draw = np.random.default_rng(seed)
    seeds, methods = run.training.seeds, run.training.methods
    labels = np.concatenate([np.arange(CLASSES), draw.integers(0, CLASSES, CLIPS - CLASSES)])

    def scores():
        logits = draw.normal(size=(CLIPS, CLASSES))
        logits[np.arange(CLIPS), labels] += gain
        return metrics(logits, labels, Scoring(NAMES, bootstrap=Bootstrap(20)))

    scored = {method: [scores() for _ in seeds] for method in methods}
    means = {method: over_seeds(made) for method, made in scored.items()}
    main = ("top1", "top5", "twin_accuracy", "ece")
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
    levels = [("heads", "8", methods[0]), ("heads", "16", methods[-1]), ("fusion", methods[0], methods[0]),
              ("fusion", methods[-1], methods[-1])]  # fmt: skip
    sizes = draw.lognormal(6.5, 0.8, CLASSES)
    balance = {name: dict(zip(NAMES, (sizes * share + 3).astype(int).tolist(), strict=True))
               for name, share in (("train", 1.0), ("validation", 0.15), ("test", 0.16))}  # fmt: skip
    streams = [
        {"name": name, "role": role, "frames": 8, "width": stream_spec(name).width, "grid": [8, 16, 16],
         "input_size": 224, "parameters": size, "trained_parameters": 0, "gflops": 50.0}
        for role, name, size in (
            ("semantic", run.streams.semantic, 22_056_576), ("motion", run.streams.motion, 27_223_104)
        )
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
        "interpretability": {
            "split": split, "exchange": [], "interaction": [], "temporal_importance": [], "heads": [],
            "growing": [{"group": "all", "clips": 64, "decided": {"value": 0.25, "low": 0.125, "high": 0.375},
                         "moment": {"value": 0.5, "low": 0.375, "high": 0.625},
                         "event_end": {"value": None, "low": None, "high": None}}],
            "fixed_by_wiring": {"headline": {"rollout.semantic.share": "one half each"}, "joint window": {}},
            "layouts": {"seed": 0, "n": CLIPS, "neighbours": 15, "trustworthiness": [], "features": [
                {"features": "readout", "same_class_neighbours": 0.01, "most": 0.1, "chance": 0.006,
                 "silhouette": None}]},
        },
    }  # fmt: skip
    run.results_dir.mkdir(parents=True, exist_ok=True)
    for stage, values in results.items():
        (run.results_dir / f"{stage}.json").write_text(json.dumps(values))
    return results


def real_run(root: Path, **values) -> Params:
    """The run of params/ssv2.yaml in another folder."""
    return dataclasses.replace(params.load(SSV2, **values), root=root)
