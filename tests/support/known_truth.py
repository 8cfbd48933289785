"""How often intervals hold the truth: data sets are drawn again and again from a world in which it is known."""

from dataclasses import dataclass

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import expit

from tcar.evaluate import Bootstrap, Scoring, metrics, paired_difference

NAMES = ("top1", "twin_accuracy", "difference")


@dataclass(frozen=True)
class World:
    """Sets of two to four clips that are hard or easy together, and two methods.

    A set's ease is standard normal, times `spread`; a method is right about a clip with the logistic of its `skills`
    plus this. `alike` is the share of the clips where chance falls the same for both methods. The first two clips of a
    set are twins, and so are the last two of four.
    """

    skills: tuple[float, float] = (1.2, 0.7)
    spread: float = 1.0
    alike: float = 0.5

    @property
    def truth(self) -> dict[str, float]:
        """The values in all sets there could be, by Gauss-Hermite quadrature over their ease."""
        ease, weights = hermegauss(80)
        first, second = (expit(skill + self.spread * ease) for skill in self.skills)
        weights = weights / weights.sum()
        top1 = weights @ first
        return {"top1": top1, "twin_accuracy": weights @ first**2, "difference": top1 - weights @ second}

    def draw(self, sets: int, rng: np.random.Generator) -> tuple[list[np.ndarray], dict]:
        """Which clips each method is right about, and what a Scoring wants to know of them."""
        names, twins, right = [], [], [[], []]
        for number in range(sets):
            size, ease = rng.integers(2, 5), self.spread * rng.normal()
            partner = {2: [1, 0], 3: [1, 0, -1], 4: [1, 0, 3, 2]}[size]
            twins += [len(names) + other if other >= 0 else -1 for other in partner]
            names += [f"set {number}"] * size
            chance, other = rng.random((2, size))
            chances = chance, np.where(rng.random(size) < self.alike, chance, other)
            for hits, skill, fell in zip(right, self.skills, chances, strict=True):
                hits.append(fell < expit(skill + ease))
        return [np.concatenate(hits) for hits in right], {"sets": names, "twins": np.array(twins)}


def coverage(sets: int, datasets: int, seed: int, world: World | None = None, samples: int = 1000) -> dict[str, float]:
    """The share of data sets whose 95% intervals hold the truth, by metric; each has so many sets of clips."""
    world, rng, held = world or World(), np.random.default_rng(seed), dict.fromkeys(NAMES, 0)
    for number in range(datasets):
        right, known = world.draw(sets, rng)
        ways = Bootstrap(samples, number), Bootstrap(1)  # a difference is resampled as its first method is
        first, second = (
            metrics(np.stack([hits, ~hits], axis=1) * 1.0, np.zeros(len(hits), int), Scoring(**known, bootstrap=how))
            for hits, how in zip(right, ways, strict=True)
        )
        intervals = {name: first[name] for name in NAMES[:2]} | {"difference": paired_difference(first, second, "top1")}
        for name, truth in world.truth.items():
            held[name] += intervals[name]["low"] <= truth <= intervals[name]["high"]
    return {name: float(count / datasets) for name, count in held.items()}
