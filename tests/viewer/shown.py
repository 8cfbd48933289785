"""Contents to show, made by hand: rendered clips of the sizes of the demo, and noise of the full size."""

import numpy as np

from tcar.tabletop.dataset import FAMILIES, SetPlan, draw
from tcar.tabletop.scene import render
from tcar.viewer import Contents, Footer, ShownClip, ShownMap

DEMO = {"semantic": (4, 4, 4), "motion": (2, 4, 4)}
FULL = {"semantic": (8, 7, 7), "motion": (4, 7, 7)}
DIRECTIONS = (("semantic", "motion"), ("motion", "semantic"))
MARK = "<img src=x onerror=document.body.dataset.broken=1></script><script>document.body.dataset.broken=1</script>"


def count(grid):
    return int(np.prod(grid))


def places(grid):
    """(y, x) of each token of a grid."""
    return np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 3)[:, 1:]


def windows(grids):
    """Each token may read the same place of the other stream, at all times."""
    return {
        f"{a}_from_{b}": (places(grids[a])[:, None] == places(grids[b])[None]).all(-1) for a, b in DIRECTIONS
    }


def softmax(scores, allowed=None):
    scores = scores if allowed is None else np.where(allowed, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def attention(grids, heads, blocks, rng, windowed=True):
    sizes, allowed = {s: count(grid) for s, grid in grids.items()}, windows(grids)
    told = {
        f"block{i}.{a}_from_{b}": softmax(
            rng.normal(0, 1.5, (heads, sizes[a], sizes[b])), allowed[f"{a}_from_{b}"] if windowed else None
        )
        for i in range(blocks)
        for a, b in DIRECTIONS
    }
    tokens = 1 + sum(sizes.values())
    return told | {"self0": softmax(rng.normal(0, 1.5, (heads, tokens, tokens)))}


def maps(grids, rng, centre=(0.5, 0.5)):
    """A signed map, one not signed that was not tested, and one of a method that failed."""
    told = []
    for stream, grid in grids.items():
        t, y, x = ((np.arange(n) + 0.5) / n for n in grid)
        bump = np.exp(-12 * ((y[:, None] - centre[0]) ** 2 + (x[None] - centre[1]) ** 2))
        values = (np.sin(np.pi * t)[:, None, None] * bump + 0.1 * rng.normal(size=grid)).astype(np.float32)
        told.append(ShownMap("occlusion", stream, values - 0.2, signed=True, passed=True, note="Fall of the logit."))
        told.append(ShownMap("rollout", stream, np.abs(values)))
        told.append(ShownMap("saliency", stream, np.abs(rng.normal(size=grid)).astype(np.float32), passed=False))
    return tuple(told)


def along(values):
    values = np.asarray(values, float)
    return (np.arange(len(values)) + 0.5) / len(values), values


def rendered(number, name, label, rng, family="push_pull", frames=None):
    """A clip of Tabletop with its masks, as the demo shows one."""
    plan = SetPlan(family, "train", 0, (0, 0, list(FAMILIES).index(family), number), ())
    scene = list(draw(plan).items())
    scene = scene[{"clip": 0, "twin": 1}[name]][1]
    drawn = render(scene, 160, 120)
    roles = {role: drawn.instances == i + 1 for i, role in enumerate(scene.instances())}
    first = next(iter(roles.values()))
    total = len(drawn.frames)
    events = tuple((event, start / total, end / total) for event, start, end in scene.events)
    return ShownClip(
        name, drawn.frames, label, seconds=total / 12, events=events, roles=roles,
        decisive=first & (np.arange(total) > total / 3)[:, None, None], moment=0.55,
        probability=along(1 / (1 + np.exp(-8 * (np.linspace(0, 1, 10) - 0.45)))),
        importance={
            "ablation": along(np.sin(np.linspace(0, 3, 8)) + 0.2 * rng.normal(size=8)),
            "shapley": along(rng.normal(size=4)),
        },
        maps=maps(DEMO, rng), attention=attention(DEMO, 4, 3, rng),
    )  # fmt: skip


PUSH, PULL = "Pushing something from left to right", "Pushing something from right to left"
ANSWERS = {
    "neither": [(PUSH, 0.86), (PULL, 0.09), ("Putting something on a surface", 0.05)],
    "semantic": [(PUSH, 0.62), (PULL, 0.31), ("Putting something on a surface", 0.07)],
    "motion": [(PUSH, 0.21), (PULL, 0.74), ("Putting something on a surface", 0.05)],
    "both": [(PUSH, 0.07), (PULL, 0.90), ("Putting something on a surface", 0.03)],
}
FOOTER = Footer("61976ee", {"params": "demo", "fusion.kind": "cross_attention", "seed": "0"}, synthetic=True)


def demo(**changes):
    """A clip and its twin, as large as the demo's."""
    rng = np.random.default_rng(0)
    told = {
        "title": "Pushed left or right: the motion stream decides", "answers": ANSWERS, "target": PUSH, "against": PULL,
        "clips": (rendered(0, "clip", PUSH, rng), rendered(0, "twin", PULL, rng)), "streams": tuple(DEMO),
        "grids": DEMO, "windows": windows(DEMO), "footer": FOOTER, "group": "motion", "wrong": False,
    }  # fmt: skip
    return Contents(**told | changes)


def full_size(blocks=4):
    """One clip of the size of the published models: 8 heads, blocks that read everything, pictures of 224."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (40, 14, 14, 3), dtype=np.uint8)
    frames = coarse.repeat(16, 1).repeat(16, 2)
    clip = ShownClip(
        "clip", frames, PUSH, maps=tuple(
            ShownMap(f"method {i}", stream, np.abs(rng.normal(size=(16, 224, 224))).astype(np.float32))
            for i in range(3) for stream in FULL
        ), attention=attention(FULL, 8, blocks, rng, windowed=False),
    )  # fmt: skip
    return Contents(
        "Full size", (clip,), tuple(FULL), FULL, {"neither": ANSWERS["neither"]}, PUSH, FOOTER,
        windows=dict.fromkeys(windows(FULL)),
    )  # fmt: skip


def small(number, **changes):
    """Contents that are quickly made: two grey clips of six frames, for galleries."""
    rng = np.random.default_rng(number)
    tint = rng.integers(40, 220, 3)
    grids = {"semantic": (2, 2, 2), "motion": (2, 2, 2)}
    clips = tuple(
        ShownClip(name, np.full((6, 48, 64, 3), tint, np.uint8), PUSH, maps=maps(grids, rng)[number % 3 :][:1])
        for name in ("clip", "twin")
    )
    told = {
        "title": f"Clip number {number}", "clips": clips, "streams": tuple(grids), "grids": grids, "answers": ANSWERS,
        "target": PUSH, "footer": FOOTER, "group": ("motion", "bound", "order of appearance")[number % 3],
        "wrong": number % 4 == 0, "point": (float(rng.normal()), float(rng.normal())),
    }  # fmt: skip
    return Contents(**told | changes)
