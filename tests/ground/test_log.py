"""The log goes to one terminal and one file; progress is lines where no bar can be seen."""

import io
import logging
import sys

import pytest

from tcar.ground import log


def test_configured_twice_still_says_everything_once(tmp_path, capsys):
    for _ in range(2):
        log.configure("INFO", tmp_path / "logs" / "x.log")
    log.get("tcar.train.heads").info("one line")
    log.get("tcar.train.heads").debug("too detailed")
    assert capsys.readouterr().err.count("one line") == 1
    text = (tmp_path / "logs" / "x.log").read_text()
    assert text.count("one line") == 1
    assert "tcar.train.heads" in text
    assert "too detailed" not in text


def test_the_level_is_the_parameter_and_an_unknown_one_an_error(capsys):
    log.configure("DEBUG")
    log.get("elsewhere").debug("detail")
    assert "detail" in capsys.readouterr().err
    with pytest.raises(ValueError, match="LOUD"):
        log.configure("LOUD")


def test_nothing_is_said_to_loggers_of_others(capsys):
    before = logging.getLogger().handlers[:]
    log.configure("DEBUG")
    assert logging.getLogger().handlers == before


def test_progress_gives_every_item_and_ends_with_a_line(capsys):
    log.configure("INFO")
    assert list(log.progress((i * i for i in range(5)), total=5, description="squares", unit="numbers")) == [
        0, 1, 4, 9, 16,
    ]  # fmt: skip
    assert "squares: 5 numbers in" in capsys.readouterr().err


def test_progress_speaks_while_it_runs(monkeypatch, capsys):
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(log.time, "monotonic", lambda: float(next(clock)))
    log.configure("INFO")
    list(log.progress(range(10), description="rendering", unit="clips"))
    lines = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    # Two seconds an item, and a line at the first item five seconds or more after the last line.
    assert lines[0].startswith("rendering: 3/10 (30%) clips")
    assert lines[0].endswith("2.0 s each, 0:14 left")
    assert len(lines) == 4


def test_progress_of_a_night_is_not_thousands_of_lines(monkeypatch, capsys):
    clock = iter(range(0, 10**6, 3))
    monkeypatch.setattr(log.time, "monotonic", lambda: float(next(clock)))
    log.configure("INFO")
    list(log.progress(range(9600), description="training", unit="epochs"))
    lines = capsys.readouterr().err.splitlines()
    assert 8 * 30 < len(lines) < 8 * 50  # of eight hours: two minutes apart, and closer at first


def test_on_a_terminal_progress_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(log.progress(range(3), description="rendering")) == [0, 1, 2]
    assert "rendering: 100%" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()


@pytest.mark.parametrize(
    ("done", "total", "seconds", "expected"),
    [
        (50, 200, 10.0, "x: 50/200 (25%), 5.0/s, 0:30 left"),
        (2, 4, 10.0, "x: 2/4 (50%), 5.0 s each, 0:10 left"),
        (7, None, 1.0, "x: 7, 7.0/s"),
        (0, 4, 0.0, "x: 0/4 (0%), 0.0/s"),
    ],
)
def test_a_line_of_progress(done, total, seconds, expected):
    assert log.progress_line("x", done, total, seconds) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(4.24, "4.2 s"), (59.7, "1:00"), (65, "1:05"), (7390, "2:03:10")])
def test_durations(seconds, expected):
    assert log.duration(seconds) == expected


def test_papermill_is_known_by_the_cell_it_injects():
    assert log.injected({"In": ["", "a = 1", "# Parameters\na = 2\nb = [1]\n"]}) == ["a", "b"]
    assert log.injected({"In": ["", "a = 1", "x = '# Parameters\\n'"]}) == []
    assert log.injected({}) == []


@pytest.mark.parametrize("total", [None, 40])
@pytest.mark.parametrize("unit", ["", "clips", "twin sets"])
@pytest.mark.parametrize("seconds", [0.0, 2.0, 500.0])
def test_a_line_of_progress_is_known_again_and_no_other(total, unit, seconds):
    line = log.progress_line("reading 2 stores, and more: tokens", 12, total, seconds, unit)
    assert log.is_progress(f"12:34:56 {line}\n")
    ended = f"12:34:56 reading: 12 clips in {log.duration(seconds)}"
    for other in (line, ended, "12:34:56 epoch 3: loss 0.2, top-1 0.5"):
        assert not log.is_progress(other)
