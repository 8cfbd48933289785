"""Data: annotation files, exact frames, the health of a dataset, and the embedded benchmark."""
