"""What the clips of one set share: the random stream, the props, the hand and the time line."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tcar.tabletop import assets
from tcar.tabletop.scene import Item, Scene

LENGTHS = (24, 32, 40)  # frames
# difficulty -> how much the hand trembles, and how many still things lie about that have no part in the action
DIFFICULTY = {"easy": (0.0, 0), "standard": (1.0, 0), "hard": (2.0, 2)}


class Stage:
    """Everything that the classes of one set share: the random stream, the props, the hand and the time line.

    `frames` is the length of the clip, or lengths of which one is drawn; `number` that of the set, for what comes in
    turn. Raises ValueError for an unknown difficulty.
    """

    def __init__(self, vocabulary: str, seed: int | list[int], frames: int | Sequence[int] = LENGTHS,
                 difficulty: str = "standard", number: int = 0):
        if difficulty not in DIFFICULTY:
            raise ValueError(f"difficulty: {difficulty!r} is not one of {', '.join(DIFFICULTY)}")
        self.vocabulary, self.number = vocabulary, number
        self.rng = np.random.default_rng(seed)
        self.frames = frames if isinstance(frames, int) else int(self.rng.choice(frames))
        self.trembling, self.clutter = DIFFICULTY[difficulty]
        self.distractors: list[Item] | None = None
        self.background = assets.Background(vocabulary, int(self.rng.integers(1 << 30)))
        self.skin = assets.sample_skin(self.rng)
        self.textures: tuple[assets.Texture, ...] = ()
        # rest at either end lasts equally long on average, so that a reversal starts no later than its original
        self.start = self.rng.uniform(0.08, 0.2)
        self.end = 1 - self.rng.uniform(0.08, 0.2)

    def rest_longer(self) -> None:
        """Begin later and end earlier, so that a hand has time to come and to go."""
        self.start, self.end = self.rng.uniform(0.2, 0.3), 1 - self.rng.uniform(0.2, 0.3)

    def u(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def side(self) -> int:
        return int(self.rng.choice([-1, 1]))

    def ramp(self, start: float | None = None, end: float | None = None) -> np.ndarray:
        """0 before `start`, 1 after `end`, smooth between (fractions of the clip)."""
        start, end = self.start if start is None else start, self.end if end is None else end
        time = (np.arange(self.frames) + 0.5) / self.frames
        s = np.clip((time - start) / (end - start), 0, 1)
        return s * s * (3 - 2 * s)

    def tremor(self, size: float = 0.5) -> np.ndarray:
        """Smooth random displacement [T, 2] in pixels, as of a held hand."""
        time = np.arange(self.frames)[:, None] / self.frames
        phase = self.rng.uniform(0, 2 * np.pi, (3, 2))
        speed = self.rng.uniform(1, 5, (3, 2))
        return self.trembling * size * np.sin(2 * np.pi * time[:, None] * speed + phase).sum(1) / 1.7

    def path(self, x, y, scale=1.0, angle=0.0) -> np.ndarray:
        return np.stack([np.broadcast_to(np.asarray(v, float), self.frames) for v in (x, y, scale, angle)], 1)

    def depth(self, value) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, float), self.frames).copy()

    def visit(self, track: np.ndarray) -> np.ndarray:
        """Let a hand that follows a track from `start` to `end` come from elsewhere and go elsewhere.

        Both places are drawn alike, about the middle of the track: where the hand is at first tells as little of the
        way as where it is at last.
        """
        middle = track[[0, -1], :2].mean(0)
        before, after = middle + self.rng.normal(0, 12, (2, 2))
        coming, going = self.ramp(0.0, self.start)[:, None], self.ramp(self.end, 1.0)[:, None]
        place = track[:, :2] * coming * (1 - going) + before * (1 - coming) + after * going
        return np.concatenate([place, track[:, 2:]], axis=1)

    def rest(self) -> np.ndarray:
        return np.tile([0.0, 0.0, 1.0], (self.frames, 1))

    def texture(self) -> assets.Texture:
        texture = assets.sample_texture(self.vocabulary, self.rng, self.textures[-3:])
        self.textures += (texture,)
        return texture

    def shape(self) -> str:
        return str(self.rng.choice(list(assets.SHAPES[self.vocabulary])))

    def thing(self, instance: str, track, depth=2.0, radius: int | None = None, **fields) -> Item:
        """An object of this vocabulary; shape and texture are drawn unless given."""
        radius = int(self.rng.integers(11, 15)) if radius is None else radius
        fields.setdefault("shape", self.shape())
        fields.setdefault("texture", self.texture())
        return Item(instance, "object", track, self.depth(depth), (radius, radius), self.vocabulary, **fields)

    def hand(self, track, posture="open", depth=3.0, instance="hand") -> list[Item]:
        """Palm and, when it grips, the fingers that close over what it holds (drawn 0.5 nearer)."""
        palm = Item(instance, "palm", track, self.depth(depth), skin=self.skin, posture=posture, shadow=0.25)
        if posture != "grip":
            return [palm]
        return [palm, replace(palm, kind="fingers", depth=self.depth(depth + 0.5), shadow=0.0)]

    def idle_hand(self) -> list[Item]:
        """A hand that rests at the lower edge: the hand's presence tells nothing."""
        wobble = self.tremor()
        return self.hand(self.path(self.u(12, 148) + wobble[:, 0], self.u(106, 112) + wobble[:, 1], 1.0,
                                   self.u(-25, 25)), depth=5.0)

    def scene(self, items, moving, *, camera=None, parallax=0.0, events=None, placeholders=(), **told) -> Scene:
        first, last = int(self.start * self.frames), int(self.end * self.frames)
        events = (("motion", first, last),) if events is None else events
        if self.distractors is None:
            # below everything else, and the same in all scenes of the set
            self.distractors = [
                self.thing(f"distractor {n}", self.path(self.u(15, 145), self.u(50, 105)), 0.1 * n)
                for n in range(self.clutter)
            ]
        return Scene(self.background, (*self.distractors, *items), self.rest() if camera is None else camera, parallax,
                     tuple(events), tuple(moving), tuple(placeholders), **told)


def name(item: Item) -> str:
    """What an object is called: its texture and its shape."""
    return f"{item.texture.name} {item.shape}".strip()
