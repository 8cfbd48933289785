"""A parameter file tried in small before a cluster is asked for: an imitation of the dataset, and what a run takes."""
