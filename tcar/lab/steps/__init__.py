"""What several notebooks need in the same way, by the stage that it belongs to: clips, features, fits,
explanations.

A later stage opens what an earlier one wrote down in its result file (quarantine, feature stores, jobs),
so it needs none of that stage's parameters and cannot ask for something else than what was made.
"""
