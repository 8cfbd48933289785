"""Twin families of Tabletop: classes that share everything but one factor, and the evidence that decides them.

A family draws one scene from a seed and renders it once for each of its classes. Each pair of twins says what it takes
to tell the two apart: `probes` measures whether that is so.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tcar.tabletop.scene import Scene
from tcar.tabletop.stage import Stage

# The groups, by the evidence that their pairs require; each holds only pairs that weaker evidence leaves open.
ONE_FRAME = "one frame"
WHAT_AND_WHERE = "what and where"
MOTION = "motion"
ORDER = "order of appearance"
BOUND = "bound"
GROUPS = (ONE_FRAME, WHAT_AND_WHERE, MOTION, ORDER, BOUND)

# Evidence, as `probes` names it, that cannot tell two twins apart by construction. What a file weighs, how long and how
# bright it is are nuisances everywhere but where the picture itself decides.
NUISANCES = frozenset({"file size", "bit rate", "length", "brightness"})
# An exact reversal shows the same frames in another order. Its first frame is another matter: a motion that gets
# somewhere begins elsewhere, so a start within a range R tells a travel D with up to 1/2 + D / 2R.
REVERSAL = NUISANCES | {"single frame", "bag of frames"}
SAME_FLOW = NUISANCES | {"true flow", "hand position"}
# What any frame shows, and with it every richer kind of evidence about appearance.
ANY_FRAME = frozenset({"first frame", "single frame", "bag of frames", "ordered frames"})


@dataclass(frozen=True)
class Pair:
    """Two classes that differ in one factor, the group they belong to, and what evidence tells them apart.

    `sufficient` holds the evidence that tells them nearly always, `blind` that which cannot; of what is in neither,
    theory says nothing.
    """

    twins: tuple[int, int]
    group: str
    sufficient: frozenset[str]
    blind: frozenset[str]


@dataclass(frozen=True)
class Family:
    """Classes that share a seed, in pairs of twins, and what draws their scenes."""

    name: str
    pairs: tuple[Pair, ...]
    draw: Callable[[Stage], dict[int, Scene]]

    @property
    def classes(self) -> list[int]:
        return [index for pair in self.pairs for index in pair.twins]

    def pair_of(self, index: int) -> Pair:
        """Return the pair that a class belongs to."""
        return next(pair for pair in self.pairs if index in pair.twins)

    def twin_of(self, index: int) -> int:
        """Return the class that differs from this one in one factor."""
        first, second = self.pair_of(index).twins
        return second if index == first else first


def family(*pairs: Pair) -> Callable[[Callable[[Stage], dict[int, Scene]]], Family]:
    """Make a family, by the name of the function that draws its scenes, of these pairs."""
    return lambda draw: Family(draw.__name__, pairs, draw)
