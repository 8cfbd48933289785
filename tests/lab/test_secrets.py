"""What is secret is in no file: small real things are run with a sentinel address, and all they wrote is read."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from notebook_files import SETUP, write_notebook
from searches import BASE, file
from test_report import write_results
from token_task import token_task

from tcar.__main__ import command
from tcar.lab import execution, params, pipeline, results
from tcar.lab.paper import report
from tcar.lab.params import ParameterError
from tcar.lab.search.space import load_settings, write_params
from tcar.lab.search.study import SearchError, open_storage
from tcar.train.alerts import Webhook
from tcar.train.tracking import watchers
from tcar.train.trainer import train

SENTINEL = "SENTINEL0123"
ADDRESS = f"https://hooks.example/{SENTINEL}"
ROOT = Path(__file__).parents[2]


def telling(folder: Path) -> list[str]:
    """The files below a folder that hold the sentinel, but those that the user wrote."""
    held = [path for path in folder.rglob("*") if path.is_file() and SENTINEL.encode() in path.read_bytes()]
    return [str(path.relative_to(folder)) for path in held if path.suffix != ".yaml" or "found" in path.name]


def stated(project: Path, **values) -> params.Params:
    values = {"name": "small", "webhook": ADDRESS, **values}
    return replace(params.from_values(values), root=project)


def test_results_and_paper_hold_no_secret(project):
    run = stated(project, publish=True)
    write_results(run.results_dir)
    results.save(run.results_dir / "audit.json", results.load(run.results_dir / "audit.json"), params=run)
    report.build(run, ())
    assert telling(project) == []
    assert json.loads((project / "paper" / "tables" / "numbers.json").read_text())["parameters"]["webhook"]


def test_a_notebook_of_the_pipeline_uses_a_secret_that_no_file_of_the_run_holds(project, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    sends = "from tcar.train.alerts import Webhook\nassert Webhook(run.watching.webhook).address.endswith('0123')"
    save = "results.save(run.results_dir / 'first.json', {}, params=run)\nrun"
    write_notebook(project / "notebooks" / "a.ipynb", "epochs = 3", SETUP, sends, save)
    (project / "toy.yaml").write_text(f"name: toy\nwebhook: {ADDRESS}\n")
    steps = (pipeline.Step("a", (), ("first",), ("training", "watching")),)
    monkeypatch.setattr(pipeline, "STEPS", steps)
    assert command("paper", ["toy.yaml"]) == 0
    assert telling(project) == []
    assert "TCAR_WEBHOOK" not in os.environ
    monkeypatch.setattr(execution, "execute", lambda *a: pytest.fail("an address is no reason to run again"))
    (project / "toy.yaml").write_text("name: toy\n")
    assert command("paper", ["toy.yaml"]) == 0


def test_a_training_holds_no_secret(project):
    run = stated(project, trackers=["csv", "tensorboard"], epochs=3, warmup_epochs=1, batch_size=8)
    task = token_task(run)
    train(task, project / "t", watchers(run.watching, project / "t"), {})
    assert (project / "t" / "run.json").is_file()
    assert telling(project) == []


def test_the_file_of_a_searchs_winner_leaves_a_secret_out(here):
    base = here / "params" / "small.yaml"
    base.write_text(f'{BASE}webhook: "{ADDRESS}#{SENTINEL}" # told\n')
    written = write_params(load_settings(file(here)), {"heads": 8}, [])
    assert telling(here) == []
    assert yaml.safe_load(written.read_text())["webhook"] == ""
    base.write_text(f"{BASE}webhook: $HOOK # told\n")
    assert "webhook: $HOOK # told\n" in write_params(load_settings(file(here)), {"heads": 8}, []).read_text()


def test_a_storages_password_comes_from_the_environment_and_is_in_no_message(here, monkeypatch):
    where = file(here, "storage: nodatabase://me:$PASSWORD@host/db\n")
    with pytest.raises(ParameterError, match=r"storage names \$PASSWORD"):
        load_settings(where)
    monkeypatch.setenv("PASSWORD", f"{SENTINEL}[")
    settings = load_settings(where)
    assert SENTINEL in settings.address and SENTINEL not in repr(settings)
    with pytest.raises(SearchError) as found:
        open_storage(settings.address)
    assert SENTINEL not in str(found.value) and found.value.__suppress_context__


def test_no_message_repeats_a_secret(project, caplog):
    assert SENTINEL not in repr(stated(project))
    for wrong in (f"ftp://{SENTINEL}", [SENTINEL]):
        with pytest.raises(ParameterError, match="webhook is .not shown.") as error:
            params.from_values({"webhook": wrong})
        assert SENTINEL not in str(error.value)
    hook = Webhook(f"http://me:{SENTINEL}@hooks.example/")  # the port of which is no number
    hook._post(watching_alert())
    assert "does not take alerts" in caplog.text and SENTINEL not in caplog.text


def watching_alert():
    from tcar.train.alerts import Alert

    return Alert("a run", "plateau", "no better", 1, 1.0)


def test_a_secret_is_refused_where_others_read_it(project, monkeypatch, capsys):
    (project / "x.yaml").write_text("name: x\n")
    assert command("train", [str(project / "x.yaml"), f"webhook={ADDRESS}"]) == 2
    told = capsys.readouterr().err
    assert 'webhook = "$MY_WEBHOOK"' in told and SENTINEL not in told
    with pytest.raises(ParameterError, match=r"\$MY_WEBHOOK") as error:
        params.from_notebook({"webhook": ADDRESS, "In": [], "Out": {}})
    assert SENTINEL not in str(error.value)
    monkeypatch.setenv("HOOK", ADDRESS)
    assert params.from_notebook({"webhook": "$HOOK", "In": [], "Out": {}}).watching.webhook == "$HOOK"
    assert telling(project) == [] and not any(SENTINEL in word for word in sys.argv)
