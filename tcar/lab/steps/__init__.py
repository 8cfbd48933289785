"""What the notebooks call: a module for each of them, and what several of them share.

Notebooks: `audit` (00), `extractors` and `concepts` (01), `fusion` (02), `training` (03), `evaluation` (04),
`ablations` and `controls` (05, which shows `pairs`, `loss_terms` and `replicates` too), `interpretability` (06).
Shared: `clips`, `streams` and their stores, `fits` (a training and what is kept of it), `methods`, `baselines`,
`model`, `units` (what accuracies count), `words`.
Measured by commands of their own: `replicates`, `loss_terms`, `pairs`, `search`; `apart` writes their results.

A later notebook opens what an earlier one wrote down in its result file (quarantine, feature stores, fits), so it needs
none of that notebook's parameters and cannot ask for something else than what was made.
"""
