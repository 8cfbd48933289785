"""Classifiers of two streams: TCA, and the published models that it is compared with."""
