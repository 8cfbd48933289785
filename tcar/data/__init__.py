"""Data: annotation files, exact frames, what a clip looks like, the loader, and the health of a dataset."""
