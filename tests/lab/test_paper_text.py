"""The text of the paper: no measured number is typed into it, and a sentence that states an outcome has to be borne."""

import json
import re
import shutil
from pathlib import Path

import matplotlib
import pytest
import typst
from test_experiment import values

from tcar.lab.paper import claims
from tcar.lab.steps import experiment

PAPER = Path(__file__).parents[2] / "paper"
TEXTS = ("tcar.typ", "supplement.typ")
# What others report, what the dataset has, what is aimed at, and names: no result of ours.
FACTS = (
    "220,847 videos of 174 classes", "168,913 for training, 24,777 for validation and 27,157 for test",
    "fewer than 20 million trained parameters and 75% top-1",
    "states 74.6% for a frozen ViT-E of 4.4 billion parameters",
    "stays near 50%", "somewhere between 50% and 60%", "target of 75 to 78% top-1",
    "under 20 million trained parameters is a target", "V-JEPA 2 or 2.1", "V-JEPA 2.1", "V-JEPA 2",
    "where theory puts a probe at 50", "exclude 0.",
    "DINOv2 ViT-S/14", "3D convolutions",
)  # fmt: skip


def prose(source: str) -> str:
    """What a reader sees of a text: without comments, code, mathematics, references and lengths."""
    source = re.sub(r"^\s*//.*$", "", source, flags=re.MULTILINE)
    lengths = r"(?:left|level|size|columns|update|h|v|kind|unit): ?\(?\d+"
    for code in (r"\$[^$]*\$", r"`[^`]*`", r'"[^"\n]*"', r"@[\w-]+", r"#if [^\[]*(?=\[)", r"[\d.]+(?:em|pt|fr|in)\b",
                 r"width: \d+%", lengths, r"\(\d\)", r"//.*", r"update\(\d\)"):  # fmt: skip
        source = re.sub(code, " ", source)
    source = " ".join(source.split())
    for fact in FACTS:
        source = source.replace(fact, " ")
    return source


@pytest.mark.parametrize("name", TEXTS)
def test_no_number_is_typed_where_a_result_belongs(name):
    found = re.findall(r".{0,40}(?<![\w.-])\d[\d.,]*.{0,20}", prose((PAPER / name).read_text(encoding="utf-8")))
    assert not found


def test_a_typed_number_is_found():
    """The test above fails for a result that somebody copies by hand."""
    assert re.search(r"(?<![\w.-])\d", prose("It reaches 83.4% top-1 on 884 clips."))
    assert not re.search(r"(?<![\w.-])\d", prose('(1) In top-1, #v("x1")% of $2^3$ @smith2020 with I3D and V-JEPA 2.'))


SWALLOWED = re.compile(r"#[\w.-]+\((?:[^()]|\([^()]*\))*\)(?:\[(?:[^\[\]]|\[[^\[\]]*\])*\])*;")


@pytest.mark.parametrize("name", TEXTS)
def test_no_semicolon_ends_a_call_instead_of_standing_in_the_text(name):
    """Typst takes one that follows a call for the end of it; `\\;` is one that a reader sees."""
    assert not SWALLOWED.findall((PAPER / name).read_text(encoding="utf-8"))
    for swallowed in ('told#see("fig-a", "tab-b"); beside', '#states("a", "b")[it (#x("c"))];'):
        assert SWALLOWED.search(swallowed)
    assert not SWALLOWED.search('told#see("fig-a")\\; beside')


def test_what_the_experiment_shows_has_a_key_for_every_test():
    given = values()
    said = claims.claims({36: values(1), 120: given})
    assert len(said) == 3 * len(experiment.tests(given))  # of the main size, and by its number of each
    assert said["h1 closer sum_averaged"]["word"] == "above"
    assert re.fullmatch(r"\+\d+\.\d points \[\d+\.\d, \d+\.\d\]", said["h1 closer sum_averaged"]["difference"])
    assert {key.split()[0] for key in said} == {"h1", "h2", "h3", "h4", "h5", "36", "120"}
    assert said["120 h1 closer sum_averaged"] == said["h1 closer sum_averaged"]
    assert claims.claims({}) == claims.reached({}) == {}


def test_the_word_is_that_of_the_corrected_test():
    given = values()
    for number, row in enumerate(given["replicates"]):  # as far below as above: no test tells a difference
        row["sum_averaged"]["per_pair"][experiment.CLOSER]["twin_accuracy"] = 0.9 + (-1) ** number * 0.3
    assert claims.claims({120: given})["h1 closer sum_averaged"]["word"] == claims.NONE


def test_numbers_of_the_experiment_are_those_of_its_cells():
    small, large = values(1), values(5)
    found = claims.reached({36: small, 120: large})
    assert (found["sets"], found["trainings"], found["replicates"], found["sizes"]) == ("120", "5", "4", "36, 120")
    cell = experiment.cells(large)[experiment.CLOSER]["sum"]["value"]
    assert found["closer sum"].startswith(f"{100 * cell:.1f} [") and found["closer sum emap"] != found["closer sum"]
    movers = experiment.cells(large, "per_variant")["9 movers"]["cross_attention"]["value"]
    assert found["movers9 cross_attention"].startswith(f"{100 * movers:.1f} [")
    assert found["36 collide joint"] == found["collide joint"]


def test_every_key_that_the_text_names_is_one_that_the_results_have():
    source = (PAPER / "tcar.typ").read_text(encoding="utf-8")
    sizes = {size: values(5 if size == 120 else 1) for size in (36, 120, 260, 1000)}
    stated = re.findall(r"#states\(\(?((?:\s*\"[^\"]*\",?)+)\)?,\s*(\"[a-z]+\"|claim-none)\)", source)
    assert len(stated) == source.count("#states(")
    named = {key for some, _ in stated for key in re.findall(r'"([^"]+)"', some)}
    named |= set(re.findall(r'#by\("([^"]+)"\)', source)) | set(re.findall(r'told\("([^"]+)",', source))
    kept = PAPER / "results"
    ablations, recipes = (json.loads((kept / f).read_text()) for f in ("ablations.json", "bound_120/recipes.json"))
    known = claims.claims(sizes) | claims.ablated(ablations, "twin_accuracy")
    assert len(named) > 9 and named <= known.keys()
    reached = set(re.findall(r'[#(]x\("([^"]+)"\)', source))
    assert len(reached) > 9 and reached <= claims.reached(sizes, recipes).keys()


def test_what_longer_training_added_is_between_half_of_the_epochs_and_all():
    rows = [{"method": "sum", "learning_rate": rate, "epochs": epochs, "validation_top1": top1}
            for rate, epochs, top1 in ((0.1, 4, 0.9), (0.2, 4, 0.5), (0.2, 8, 0.625))]  # fmt: skip
    recipes = {"rows": rows, "chosen": {"sum": {"learning_rate": 0.2, "epochs": 8}}}
    assert claims.reached({120: values()}, recipes)["doubled sum"] == "+12.5"
    recipes["chosen"]["sum"]["epochs"] = 4  # the shortest: of half of it nothing is known
    assert "doubled sum" not in claims.reached({120: values()}, recipes)


def test_an_ablation_says_what_its_corrected_test_tells():
    row = {"metric": "top1", "factor": "window", "level": "joint", "difference": -0.1, "low": -0.2, "high": -0.05}
    told = {"alpha": 0.05, "comparisons": [row | {"holm": 0.01}, row | {"holm": 0.2, "level": "space"}]}
    assert claims.ablated(told, "top1") == {"window joint": {"word": "below"}, "window space": {"word": claims.NONE}}
    assert claims.ablated(told, "twin_accuracy") == {}


def test_what_is_of_the_run_itself_is_left_out_where_its_results_do_not_bear_it(tmp_path):
    """A smoke run tells no ablation apart, and has the sentences of the experiment all the same."""
    shutil.copy(PAPER / "layout.typ", tmp_path)
    inserted = json.loads((PAPER / "tables" / "numbers.json").read_text(encoding="utf-8"))
    (tmp_path / "tables").mkdir()
    text = '#import "layout.typ": *\n#assert.eq(told("window joint", "below"), {})'
    for said, bears in (({"word": "below"}, "true"), ({"word": claims.NONE}, "false"), (None, "false")):
        inserted["claims"] = {"window joint": said} if said else {}
        (tmp_path / "tables" / "numbers.json").write_text(json.dumps(inserted), encoding="utf-8")
        (tmp_path / "text.typ").write_text(text.replace("{}", bears), encoding="utf-8")
        assert typst.compile(tmp_path / "text.typ", root=tmp_path)


@pytest.mark.parametrize(("word", "compiles"), [("above", True), ("below", False), (claims.NONE, False)])
def test_a_sentence_that_its_result_does_not_bear_is_not_printed(tmp_path, word, compiles):
    shutil.copy(PAPER / "layout.typ", tmp_path)
    inserted = json.loads((PAPER / "tables" / "numbers.json").read_text(encoding="utf-8"))
    inserted |= {"claims": {"h1": {"word": "above"}}, "experiment": {}}
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "numbers.json").write_text(json.dumps(inserted), encoding="utf-8")
    text = f'#import "layout.typ": *\n#states("h1", "{word}")[It is.]'
    (tmp_path / "text.typ").write_text(text, encoding="utf-8")
    options = {"root": tmp_path, "font_paths": [Path(matplotlib.get_data_path()) / "fonts" / "ttf"]}
    if compiles:
        assert typst.compile(tmp_path / "text.typ", **options)
    else:
        with pytest.raises(typst.TypstError, match=r"says of `h1`"):
            typst.compile(tmp_path / "text.typ", **options)
