"""Sentences that are computed say what intervals bear: by groups of twins, and of additive projections."""

from tcar.lab.paper import sentences, tables


def entry(value: float, low: float, high: float) -> dict:
    return {"value": value, "low": low, "high": high}


def minus(difference: float, low: float, high: float) -> dict:
    return {"difference": difference, "low": low, "high": high, "metric": "twin_accuracy"}


def evaluated(**against: dict) -> dict:
    reached = {group: entry(0.75, 0.5, 1.0) for group in against}
    methods = {"cross_attention": {"per_group_twin_accuracy": reached}}
    return {"evaluation": {"methods": methods, "comparisons_by_group": against}}


ABOVE, SAME = minus(0.25, 0.125, 0.375), minus(0.125, -0.125, 0.25)


def test_a_group_is_said_to_need_both_streams_where_the_headline_is_above_each():
    results = evaluated(bound={"semantic": ABOVE, "motion": ABOVE, "sum": SAME},
                        motion={"semantic": ABOVE, "motion": SAME, "sum": SAME})  # fmt: skip
    said = sentences.groups_told(results)
    assert "have to be bound, it answers 75.0% [50.0, 100.0] of the pairs; both streams are needed" in said
    assert "Where motion decides" in said and "the motion stream alone is not shown to do worse." in said
    assert sentences.both_needed(results) == "the group bound"
    one = evaluated(bound={"semantic": SAME, "motion": ABOVE})
    assert sentences.both_needed(one) == "no group"
    two = evaluated(bound={"semantic": ABOVE, "motion": ABOVE}, motion={"semantic": ABOVE, "motion": ABOVE})
    assert sentences.both_needed(two) == "the groups motion and bound"


def test_rivals_stand_below_above_or_beside_the_headline():
    rows = [{"a": "cross_attention", "b": rival, **row} for rival, row in
            {"motion": ABOVE, "sum": SAME, "semantic": ABOVE, "joint": minus(-0.25, -0.5, -0.125)}.items()]  # fmt: skip
    said = sentences.standing({"evaluation": {"comparisons": rows}}, "twin_accuracy")
    assert said == (
        "In twin accuracy, below temporal cross-attention: the semantic stream, the motion stream; not told apart from "
        "it: the sum of both streams' scores; above it: one transformer over all tokens"
    )
    assert sentences.standing({"evaluation": {"comparisons": rows}}, "top1") == ""


def test_the_control_that_costs_most_is_named_of_each_group():
    def row(group: str, control: str, change: dict, method: str = "cross_attention") -> dict:
        return {"group": group, "control": control, "change": change, "method": method}

    rows = [row("bound", "frozen", entry(-0.25, -0.5, -0.125)), row("bound", "reversed", entry(-0.5, -0.75, -0.25)),
            row("motion", "noise", entry(-0.25, -0.5, 0.125)), row("all", "noise", entry(-1.0, -1.0, -0.5)),
            row("bound", "noise", entry(-1.0, -1.0, -0.5), "sum")]  # fmt: skip
    said = sentences.hurts_most({"controls": {"rows": rows}})
    assert said == "bound, when clips are played backwards"
    assert sentences.hurts_most({}) == ""


def test_of_conditions_only_those_that_matter_are_told_in_full():
    def condition(name: str, difference: dict) -> dict:
        return {"condition": name, "difference": difference, "clips": 12, "classes": 2}

    found = {"answers": 24, "clips": 12, "errors": 6, "twins": None, "kinds": [],
             "confident": {"above": 0.9, "answers": 0}, "conditions": [
                 condition("small", entry(-0.25, -0.5, -0.125)), condition("fast", entry(0.125, -0.25, 0.5)),
                 condition("late", entry(0.125, -0.25, 0.5))]}  # fmt: skip
    said = sentences.errors_told(found)
    assert "what acts is small are named rightly less often" in said and said.count("Clips in which") == 1
    assert said.endswith("Clips whose action is fast, late are not told apart from others of their class.")


def test_clips_without_twins_have_no_groups_to_tell_of():
    results = {"evaluation": {"methods": {"cross_attention": {}}}}
    assert sentences.groups_told(results) == sentences.both_needed(results) == sentences.interaction(results) == ""


def test_only_pairs_whose_interval_is_below_zero_are_said_to_interact():
    def row(pair: list[str] | str, kept: dict, method: str = "cross_attention") -> dict:
        return {"method": method, "pair": pair, "kept": kept}

    lost, told = entry(-0.5, -0.75, -0.25), entry(-0.25, -0.5, 0.25)
    rows = [row(["Closer", "Away"], lost), row(["Up", "Down"], told), row(["Left", "Right"], entry(0.0, 0.0, 0.0)),
            row("all", lost), row(["Cover", "Uncover"], lost, "sum")]  # fmt: skip
    said = sentences.interaction({"evaluation": {"emap": rows}})
    assert said == (
        "By it temporal cross-attention loses “Closer” and its twin (-50.0 points [-75.0, -25.0]); of the other 2 "
        "pairs no loss can be told"
    )
    none = sentences.interaction({"evaluation": {"emap": rows[1:3]}})
    assert none == "Of none of 2 pairs can it be told that temporal cross-attention loses anything by it"


def test_classes_are_listed_from_the_weakest_and_of_many_the_rest_is_left_out():
    few = {"Up": entry(0.75, 0.5, 1.0) | {"support": 8}, "Down": entry(0.5, 0.25, 0.75) | {"support": 4},
           "Gone": {"value": None, "low": None, "high": None, "support": 0}}  # fmt: skip
    table = tables.per_class_table("Classes.", few)
    assert [row[:2] for row in table.rows] == [["Down", "4"], ["Up", "8"], ["Gone", "0"]]
    assert table.rows[1][2] == "75.0 [50.0, 100.0]" and table.caption == "Classes."
    many = tables.per_class_table("Classes.", {f"Class {n:02}": few["Up"] for n in range(50)})
    assert len(many.rows) == 40 and many.caption == "Classes. Of 50 classes, 40 are shown."


def test_ablations_of_one_training_say_how_far_trainings_are_apart():
    own = {"per_seed": {"top1": [0.75, 0.8125, 0.6875]}}
    results = {"ablations": {"rows": [{"seed": 0}] * 2}, "evaluation": {"methods": {"cross_attention": own}}}
    assert sentences.trained_once(results, "top1").endswith("3 in number, lie within 12.5 points of each other.")
    assert sentences.trained_once(results, "twin_accuracy") == ""  # no twins
    results["ablations"]["rows"].append({"seed": 1})
    assert sentences.trained_once(results, "top1") == ""


def test_miniatures_are_told_with_what_they_cost():
    methods = {"cross_attention": {"gflops": 2.0, "converged": True}, "cast_tiny": {"gflops": 3.0, "converged": False},
               "timesformer_tiny": {"gflops": 0.5, "converged": None}}  # fmt: skip
    rows = [{**row, "a": "cross_attention", "b": rival, "metric": metric}
            for rival, row in {"cast_tiny": ABOVE, "timesformer_tiny": SAME}.items()
            for metric in ("top1", "twin_accuracy")]  # fmt: skip
    measured = {"headline": "cross_attention", "methods": methods, "comparisons": rows}
    said = sentences.miniatures_told(measured)
    assert said.startswith("In twin accuracy, cross-attention is above CAST (+")
    assert "it takes 1.5 times as many operations a clip), and not distinguishable from TimeSformer (" in said
    assert said.endswith("0.25 times as many operations a clip). By the criterion above, CAST had not converged")
    top1 = [row for row in rows if row["metric"] == "top1"]
    assert sentences.miniatures_told(measured | {"comparisons": top1}).startswith("In top-1 accuracy, ")
    assert sentences.miniatures_told({}) == ""
