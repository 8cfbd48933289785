"""What the paper says of explanations: as much as made-up results bear, and nothing where they were not measured."""

import copy
import json
import re

import pytest
import typst
from test_report import assert_shows, read_table, run_in, write_results

from tcar.lab import measured, numerals, results
from tcar.lab.paper import explained, report

CLOSER, LANES, PUSH = ["Closer", "Away"], ["Up", "Down"], ["Push", "Pull"]
ABOVE, BELOW, SAME = (0.25, 0.125, 0.375), (-0.25, -0.375, -0.125), (0.125, -0.125, 0.25)


def entry(value: float | None, low: float | None = None, high: float | None = None, **more) -> dict:
    return {"value": value, "low": low, "high": high, **more}


def exchange(pair, group, stream, flips, moved=(1.25, 0.75, 1.5), clips=8) -> dict:
    return {"pair": pair, "group": group, "stream": stream, "clips": clips, "flips": entry(*flips),
            "moved": entry(*moved)}  # fmt: skip


HIGH, LOW, WIDE = (0.875, 0.75, 1.0), (0.125, 0.0, 0.25), (0.5, 0.125, 0.875)
INSIDE = {
    "split": "test",
    "exchange": [
        exchange(CLOSER, "bound", "semantic", HIGH), exchange(CLOSER, "bound", "motion", LOW),
        exchange(LANES, "bound", "semantic", WIDE), exchange(LANES, "bound", "motion", (0.25, 0.125, 0.5)),
        exchange(PUSH, "motion", "semantic", LOW), exchange(PUSH, "motion", "motion", HIGH),
        exchange(["Left", "Right"], "motion", "semantic", (None, None, None), (None,), 0),
        exchange("all", None, "semantic", WIDE), exchange("all", None, "motion", WIDE),
    ],
    "interaction": [{"pair": CLOSER, "group": "bound", "clips": 8, **entry(-1.5, -2.0, 0.25)},
                    {"pair": "all", "group": None, "clips": 32, **entry(0.25, 0.125, 0.5)}],
    "temporal_importance": [],
    "growing": [{"group": "bound", "clips": 4, "decided": entry(1.0), "moment": entry(0.5), "event_end": entry(0.5)},
                {"group": "all", "clips": 16, "decided": entry(0.75, 0.5, 1.0), "moment": entry(0.5, 0.375, 0.625),
                 "event_end": entry(0.75, 0.6875, 0.8125)}],
    "heads": [],
    "fixed_by_wiring": {"headline": {
        "block0.semantic_from_motion.received.motion.per_place": "one place",
        "block0.motion_from_semantic.received.semantic.per_place": "one place",
        "block0.semantic_from_motion.space": "equally far",
        "rollout.semantic.share": "one half each", "rollout.motion.share": "one half each",
    }, "joint window": {}},
    "layouts": {"seed": 0, "n": 400, "neighbours": 15, "features": [
        {"features": features, "same_class_neighbours": share, "most": 0.875, "chance": 0.0625, "silhouette": -0.125}
        for features, share in (("semantic", 0.25), ("motion", 0.125), ("readout", 0.625))],
        "trustworthiness": [{"features": "readout", "method": "umap", "value": 0.875}]},
}  # fmt: skip


def scores(method: str, stream: str, mass: float, groups=("all", "bound")) -> list[dict]:
    return [{"method": method, "stream": stream, "mask": mask, "group": group,
             **{key: entry(value, value - 0.0625, value + 0.0625, n=24) for key, value in
                (("mass", mass), ("pointing", 0.75), ("auc", 0.875), ("most", 0.9))}}
            for mask in ("decisive", "mover") for group in groups]  # fmt: skip


def judged(method: str, stream: str, passed: bool | None, over: tuple) -> dict:
    rivals = ("frame difference", "re-initialised fusion", "permuted labels")
    return {"method": method, "stream": stream, "measure": "mass", "clips": 24, "passed": passed,
            "differences": {name: entry(*over) for name in rivals}}  # fmt: skip


EXPLAINED = {
    "split": "test", "sets": {"clips": 204, "pixel_clips": 34, "sets": 60},
    "scores": [*scores("grad_cam", "motion", 0.25), *scores("even", "semantic", 0.0),
               *scores("exchanged_cells", "semantic", 0.5), *scores("exchanged_cells", "motion", 0.375)],
    "verdicts": [judged("exchanged_cells", "motion", True, ABOVE), judged("exchanged_cells", "semantic", True, ABOVE),
                 judged("grad_cam", "motion", False, SAME), judged("rollout", "semantic", False, ABOVE),
                 judged("tubes", "semantic", None, (0.25,))],
    "cells": [{"stream": "semantic", "group": "all", "share": entry(1.125, 0.875, 1.25), "more": entry(*ABOVE)},
              {"stream": "motion", "group": "all", "share": entry(0.5, 0.375, 0.625), "more": entry(*SAME)},
              {"stream": "motion", "group": "bound", "share": entry(0.0), "more": entry(*BELOW)}],
    "binding": [{"stream": stream, "method": method, "cross_attention": entry(0.5), "late_concat": entry(0.25),
                 "difference": entry(*difference)} for stream, method, difference in
                (("semantic", "rollout", ABOVE), ("semantic", "gradient_rollout", SAME), ("motion", "rollout", BELOW))],
    "convergence": {"clips": 34, "median": 0.0125, "p95": 1.5, "below": {"threshold": 0.03, "share": 0.75},
                    "unconverged": 2},
    "moments": [{"model": model, "method": "frame_shapley", "inside": entry(0.25, 0.125, 0.375, n=34)}
                for model in ("headline", "permuted labels")],
    "curves": [{"method": "tubes", "insertion": entry(0.75, n=34), "deletion": entry(0.25, n=34)}],
}  # fmt: skip


def said(key: str, inside: dict | None = None, judged: dict | None = None) -> str:
    given = {"interpretability": INSIDE if inside is None else inside}
    return explained.explained_sentences(given | {"explanations": EXPLAINED if judged is None else judged})[key]


def test_an_exchange_is_told_by_pair_and_a_difference_only_where_intervals_lie_apart():
    bound, motion = said("exchange").split("apart. ")
    assert bound.startswith("Where appearance and motion have to be bound, with one flow for both twins, the semantic ")
    assert "flips the answer in 50.0% [12.5, 87.5] to 87.5% [75.0, 100.0] of the clips, by pair, its motion" in bound
    assert bound.endswith("the semantic stream flips more in 1 of 2 pairs and the motion stream in 0, as far as "
                          "intervals lie ")  # fmt: skip
    assert motion == (
        "Where motion decides, the motion stream of the twin alone flips the answer in 87.5% [75.0, 100.0] of the "
        "clips, its semantic stream in 12.5% [0.0, 25.0]; the motion stream flips more in 1 of 1 pairs and the "
        "semantic stream in 0, as far as intervals lie apart."
    )


def test_methods_that_pass_are_named_and_others_by_what_they_fail():
    told = said("explanations")
    assert told.startswith(
        "On 204 clips by what reads tokens and 34 by what goes back to pixels, of 60 twin sets, exchanged cells (both "
        "streams) pass; not told to be above the frame difference: Grad-CAM (motion); of too few sets to say: occluded "
        "tubes (semantic); all others are above it, but not told to be above themselves with fresh weights or permuted "
        "labels. Integrated gradients miss"
    )
    assert told.endswith(
        " Integrated gradients miss the sum that they must have by 1.2% in the median and 150.0% in the 95th "
        "percentile of 34 clips, by less than 3.0% in 75.0% of them; 2 did not converge."
    )
    none = EXPLAINED | {"verdicts": EXPLAINED["verdicts"][2:3], "convergence": {"clips": 0}}
    assert said("explanations", judged=none).endswith(
        "sets, no method passes; not told to be above the frame difference: Grad-CAM (motion)."
    )


def test_binding_and_cells_say_above_below_or_neither():
    assert said("binding").endswith(
        "in the semantic stream above it by attention rollout (+25.0 points [12.5, 37.5]) and not told apart from it "
        "by gradient-weighted rollout (+12.5 points [-12.5, 25.0]); in the motion stream below it by attention rollout "
        "(-25.0 points [-37.5, -12.5])."
    )
    assert said("cells") == (
        "Of what its grid allows, the exchange of single cells reaches 112.5% [87.5, 125.0] in the semantic stream, "
        "above attention rollout (+25.0 points [12.5, 37.5] of mass); 50.0% [37.5, 62.5] in the motion stream, not "
        "told apart from attention rollout (+12.5 points [-12.5, 25.0] of mass)."
    )


def test_no_sentence_rests_on_what_the_wiring_fixes():
    fixed = copy.deepcopy(INSIDE)
    fixed["fixed_by_wiring"]["headline"]["rollout.semantic.per_place"] = "a mean"
    binding, cells = said("binding", fixed), said("cells", fixed)
    assert "above it by attention rollout" not in binding and "gradient-weighted" in binding
    assert "above attention rollout" not in cells and "not told apart from attention" in cells
    assert said("wiring") == (
        "Whatever is learned, the wiring fixes the share of each place across the streams, how far away in space is "
        "read across the streams and the share of each stream of attention rollout; nothing here rests on these."
    )


def test_neighbours_stand_against_the_most_and_moments_against_the_events():
    assert said("layouts") == (
        "Of the 15 nearest neighbours of a clip in the full space, 25.0% by the mean semantic token, 12.5% "
        "by the mean motion token and 62.5% by the readout are of its class, where at most 87.5% can be."
    )
    assert said("growing") == (
        "The true class stays above one half from some moment on in 75.0% [50.0, 100.0] of 16 clips, on average from "
        "50.0% [37.5, 62.5] of the clip; that is before where the last event ends, at 75.0% [68.8, 81.2]."
    )
    late = copy.deepcopy(INSIDE)
    late["growing"][1]["event_end"] = entry(0.5, 0.25, 0.75)
    assert "that is not told apart from where the last event ends" in said("growing", late)
    late["growing"][1]["event_end"] = entry(None)
    assert said("growing", late).endswith("50.0% [37.5, 62.5] of the clip.")


def test_what_was_not_measured_is_not_told():
    real = {key: value for key, value in INSIDE.items() if key in ("growing", "layouts")} | {"exchange": []}
    given = {"interpretability": real}
    told = {key for key, text in explained.explained_sentences(given).items() if text}
    assert told == {"growing", "layouts"}
    rows = {table.name: table.rows for table in explained.explained_tables(given, "of real videos", "95%")}
    assert [name for name, some in rows.items() if some] == ["layouts"]
    assert not any(explained.explained_sentences({"interpretability": {}}).values())
    assert explained.judged_sentences({}) == []


def test_the_notebook_says_what_the_paper_does():
    assert explained.exchange_sentence(INSIDE) == said("exchange")
    assert explained.judged_sentences(EXPLAINED) == [said(key) for key in ("explanations", "binding", "cells")]


@pytest.mark.parametrize(("value", "shown"), [
    (1.125, "112.5"), (None, ""), (entry(-1.5, -2.0, 0.25), "-150.0 [-200.0, 25.0]"), (entry(0.5), "50.0"),
    (entry(None), ""), (-0.0001, "0.0"),
])  # fmt: skip
def test_a_share_may_lie_beyond_the_whole(value, shown):
    assert numerals.beyond(value) == shown
    assert numerals.beyond(entry(0.5, 0.25, 0.75), "+") == "+50.0 [25.0, 75.0]"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    run = run_in(tmp_path_factory.mktemp("explained"))
    write_results(run.results_dir)
    (run.results_dir / "interpretability.json").write_text(json.dumps(INSIDE))
    results.save(run.results_dir / measured.EXPLANATIONS, EXPLAINED, params=run)
    report.build(run, [])
    return run.run_dir / "paper"


def test_tables_of_explanations_equal_the_result_files(built):
    folder = built / "tables"
    rows = {row["Twins"]: row for row in read_table(folder, "exchange")}
    assert list(rows) == ["Closer / Away", "Up / Down", "Push / Pull", "All"]
    assert_shows(rows["Closer / Away"]["Semantic flips"], INSIDE["exchange"][0]["flips"])
    assert_shows(rows["Closer / Away"]["Motion moves"], INSIDE["exchange"][1]["moved"])
    assert_shows(rows["Closer / Away"]["Together"], INSIDE["interaction"][0])
    shown = {(row["Stream"], row["Method"]): row for row in read_table(folder, "explanations")}
    assert list(shown) == [("Semantic stream", "Exchanged cells"), ("Semantic stream", "Even map"),
                           ("Motion stream", "Exchanged cells"), ("Motion stream", "Grad-CAM")]  # fmt: skip
    assert [row["Passes"] for row in shown.values()] == ["yes", "", "yes", "no"]
    assert_shows(shown["Motion stream", "Grad-CAM"]["Above the frame difference"], entry(*SAME))
    assert_shows(shown["Motion stream", "Grad-CAM"]["Mass"], EXPLAINED["scores"][0]["mass"])
    by_group = {(row["Stream"], row["Method"]): row["Bound"] for row in read_table(folder, "explanations_per_group")}
    assert_shows(by_group["Motion stream", "Grad-CAM"], EXPLAINED["scores"][1]["mass"])
    moments = read_table(folder, "explanation_moments")
    assert [(row["Model"], row["Insertion"]) for row in moments] == [
        ("Headline", ""), ("Permuted labels", ""), ("Headline", "75.0")]  # fmt: skip
    layouts = {row["Features"]: row for row in read_table(folder, "layouts")}
    assert [layouts["Readout"][key] for key in ("Same class", "UMAP")] == ["62.5", "0.88"]
    assert layouts["Motion"]["UMAP"] == ""


def test_the_text_tells_it_and_says_who_measured_it(built):
    options = {"root": built, "sys_inputs": {"figures": "figures"}, "ignore_system_fonts": True}
    text = typst.query(built / "tcar.typ", "par", **options)
    words = " ".join(re.findall(r'"text": ?"([^"]*)"', text))
    for said in ("exchanged cells (both streams) pass", "Of what its grid allows", "before where the last event"):
        assert said in " ".join(words.split()), said
    assert "tcar explanations" in (built / "tables" / "compute.csv").read_text()
