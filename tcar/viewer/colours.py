"""The colours of values over pictures, as in viewer.js: what is weak lets the picture through."""

import numpy as np
from jaxtyping import Float

WARM = np.array([[255, 209, 102], [247, 127, 0], [208, 0, 64]]) / 255
COLD = np.array([[142, 202, 230], [33, 120, 181], [18, 53, 130]]) / 255
COVER = 0.85


def overlay(values: Float[np.ndarray, "y x"]) -> Float[np.ndarray, "y x 4"]:
    """Return red, green, blue and cover of values in [-1, 1]: warm above 0, cold below."""
    strength = np.abs(values).clip(0, 1)
    stops = np.linspace(0, 1, len(WARM))
    ramps = [np.stack([np.interp(strength, stops, ramp[:, c]) for c in range(3)], -1) for ramp in (COLD, WARM)]
    colour = np.where((values < 0)[..., None], ramps[0], ramps[1])
    return np.concatenate([colour, COVER * strength[..., None]], axis=-1)
