"""Tabletop: the embedded synthetic benchmark, in the file formats of Something-Something-V2."""

from tcar.tabletop.dataset import Look, load_index, load_truth, render_dataset

__all__ = ["Look", "load_index", "load_truth", "render_dataset"]
