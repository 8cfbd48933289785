"""Tabletop: the embedded synthetic benchmark, in the file formats of Something-Something-V2."""
