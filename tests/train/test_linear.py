"""Linear readers that stream from a table: the optimum of scikit-learn's solver, whatever the chunks and cores."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tcar.train import linear
from tcar.train.linear import Features, Table, fit_linear

CPU = torch.device("cpu")


def data(classes: int, rows: int = 900, columns: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Correlated columns of very different size, far from zero, one of them constant; classes of a linear rule."""
    rng = np.random.default_rng(classes)
    turn = np.linalg.qr(rng.normal(size=(columns, columns)))[0]
    values = (rng.normal(size=(rows, columns)) * np.arange(1, columns + 1) ** -1.0) @ turn * 3
    labels = (values @ rng.normal(size=(columns, classes)) + rng.gumbel(size=(rows, classes)) * 0.3).argmax(1)
    values = (values + 5 * rng.normal(size=columns)) * np.geomspace(1e-3, 1e3, columns)
    values[:, 7] = 0.1
    return values.astype(np.float32), labels


def probabilities(folder: Path, values: np.ndarray, labels: np.ndarray, workers: int, blocks: int = 1) -> np.ndarray:
    with Table(folder, values.shape[1]) as table:
        table.append(values[:10])
        table.append(values[10:])
        features = Features(table, CPU, workers, blocks)
        reader = fit_linear(features, range(len(labels)), labels, 0.01)
        return np.exp(reader.log_probabilities(features, range(len(values))))


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_the_optimum_is_that_of_scikit_learn(tmp_path, monkeypatch, classes):
    monkeypatch.setattr(linear, "CHUNK", 4 * 60 * 128)
    values, labels = data(classes)
    found = probabilities(tmp_path, values, labels[:800], workers=2)
    scaler = StandardScaler().fit(values[:800].astype(np.float64))
    model = LogisticRegression(C=0.01, max_iter=10000, tol=1e-10)
    model.fit(scaler.transform(values[:800].astype(np.float64)), labels[:800])
    wanted = model.predict_proba(scaler.transform(values.astype(np.float64)))
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert np.ptp(wanted, axis=0).max() > 0.3  # there is something to tell apart


def test_numbers_depend_neither_on_cores_nor_on_other_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(linear, "CHUNK", 4 * 60 * 100)
    values, labels = data(4)
    one = probabilities(tmp_path, values, labels, workers=1)
    np.testing.assert_array_equal(one, probabilities(tmp_path, values, labels, workers=3))
    np.testing.assert_array_equal(one, probabilities(tmp_path, np.concatenate([values, values]), labels, 2)[:900])


def test_averaged_blocks_are_a_table_of_averages(tmp_path):
    values, labels = data(3)
    values = (values / np.geomspace(1e-3, 1e3, 60)).astype(np.float32)
    averaged = values.reshape(len(values), 4, 15).mean(1)
    found = probabilities(tmp_path, values, labels, 1, blocks=4)
    np.testing.assert_allclose(found, probabilities(tmp_path, averaged, labels, 1), atol=1e-4)


def test_a_table_has_no_name_and_is_read_in_chunks(tmp_path, monkeypatch):
    """So nothing is left of it after a kill, and memory is that of the chunks, however many rows there are."""
    monkeypatch.setattr(linear, "CHUNK", 4 * 5 * 8)
    asked, read = [], Table.read
    monkeypatch.setattr(Table, "read", lambda table, start, into: (asked.append(into.nbytes), read(table, start, into)))
    values = np.arange(500, dtype=np.float32).reshape(100, 5)
    with Table(tmp_path / "run", 5) as table:
        table.append(values)
        features = Features(table, CPU, 2)
        assert list((tmp_path / "run").iterdir()) == []
        chunks = list(features.over(range(3, 98), lambda chunk, place: (place, chunk.clone())))
        np.testing.assert_array_equal(torch.cat([chunk for _, chunk in chunks]), values[3:98])
        assert [place.start for place, _ in chunks] == list(range(0, 95, 8)) and max(asked) <= linear.CHUNK
        with pytest.raises(IndexError, match="rows 98 to 101 asked of a table of 100"):
            list(features.over(range(98, 101), lambda chunk, place: None))


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 2, 2], [0, 1], [-1, 0, 1]])
def test_labels_that_do_not_fit_are_refused(tmp_path, labels):
    with Table(tmp_path, 2) as table:
        table.append(np.eye(3, 2, dtype=np.float32))
        features = Features(table, CPU, 1)
        with pytest.raises(ValueError, match="one of 0 to c - 1 for each row expected, each used"):
            fit_linear(features, range(3), np.array(labels), 0.01)


def test_a_disk_that_is_full_is_named(tmp_path):
    with Table(tmp_path, 2) as table:
        table._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
        with pytest.raises(OSError, match="No space left") as refused:
            table.append(np.ones((3, 2)))
    assert refused.value.filename == str(tmp_path)
