"""Every fusion written out a second time: numpy in float64, a loop for each block, stream, head and window.

It takes a fusion's weights by name and shares no line with it. Positions are rotation matrices, windows come from
distances pair by pair, nothing is fused, pruned or cached.
"""

import numpy as np
from scipy.special import erf

STREAMS = ("semantic", "motion")
OTHER = {"semantic": "motion", "motion": "semantic"}
READERS = {"semantic_from_motion": ("semantic",), "motion_from_semantic": ("motion",)}


class Weights:
    """A state dict, read by a path in it."""

    def __init__(self, state: dict, path: str = ""):
        self.state, self.path = state, path

    def __getitem__(self, name: str | int) -> "Weights":
        return Weights(self.state, f"{self.path}.{name}" if self.path else str(name))

    def array(self, name: str) -> np.ndarray | None:
        found = self.state.get(self[name].path)
        return None if found is None else found.detach().double().numpy()

    def linear(self, x: np.ndarray) -> np.ndarray:
        bias = self.array("bias")
        return np.einsum("...i,oi->...o", x, self.array("weight")) + (0 if bias is None else bias)

    def norm(self, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        return centred / spread * self.array("weight") + self.array("bias")

    def feed_forward(self, x: np.ndarray) -> np.ndarray:
        return self[3].linear(gelu(self[1].linear(self[0].norm(x))))


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / np.sqrt(2))) / 2


def rotations(xyz: np.ndarray, heads: int, size: int) -> np.ndarray:
    """Return the matrix [heads tokens size size] that turns a head's channels at each token's place."""
    pairs, found = size // 2, np.zeros((heads, len(xyz), size, size))
    for h in range(heads):
        for p in range(pairs):
            share = (p * heads + h) / max(heads * pairs - 1, 1)
            angle = np.pi / 4 * 32**share * xyz[:, (p + h) % 3]
            a, b = 2 * p, 2 * p + 1
            found[h, :, a, a], found[h, :, b, b] = np.cos(angle), np.cos(angle)
            found[h, :, b, a], found[h, :, a, b] = np.sin(angle), -np.sin(angle)
    return found


def allowed(queries: np.ndarray, keys: np.ndarray, window: str) -> np.ndarray:
    """Return which pairs may meet [queries keys]: those of which either is nearest to the other, in place or moment."""
    axes = {"joint": [], "time": [1, 2], "space": [0]}[window]
    apart = np.zeros((len(queries), len(keys)))
    for i, query in enumerate(queries):
        for j, key in enumerate(keys):
            apart[i, j] = np.sqrt(sum((query[a] - key[a]) ** 2 for a in axes))
    return (apart < apart.min(axis=1, keepdims=True) + 1e-6) | (apart < apart.min(axis=0, keepdims=True) + 1e-6)


def averaged(tokens: np.ndarray, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each token and its time as the mean over all tokens at its place."""
    found, places = np.zeros_like(tokens), xyz.copy()
    for n, (_, y, x) in enumerate(xyz):
        there = [m for m, (_, y2, x2) in enumerate(xyz) if (y, x) == (y2, x2)]
        found[:, n] = sum(tokens[:, m] for m in there) / len(there)
        places[n, 0] = sum(xyz[m, 0] for m in there) / len(there)
    return found, places


def read(q, k, v, heads: int, q_xyz, k_xyz, mask) -> np.ndarray:
    """Return what queries [b n d] read of keys and values [b m d] at their places; None: nothing is turned."""
    size, out = q.shape[-1] // heads, np.zeros_like(q)
    turns = [None if xyz is None else rotations(xyz, heads, size) for xyz in (q_xyz, k_xyz)]
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        query, key = (
            x[..., part] if turn is None else np.einsum("nij,bnj->bni", turn[h], x[..., part])
            for x, turn in zip((q, k), turns, strict=True)
        )
        scores = np.exp(np.einsum("bni,bmi->bnm", query, key) / np.sqrt(size)) * mask
        total = scores.sum(axis=-1, keepdims=True)
        shares = np.divide(scores, total, out=np.zeros_like(scores), where=total > 0)
        out[..., part] = np.einsum("bnm,bmi->bni", shares, v[..., part])
    return out


class Reference:
    """The logits of a fusion of any kind from its configuration and its weights.

    `places` are the coordinates (t, y, x) of whole grids, `kept` names the tokens that are there.
    """

    def __init__(self, fusion):
        self.config, self.weights = fusion.config, Weights(fusion.state_dict())

    def __call__(self, semantic, semantic_xyz, motion, motion_xyz, kept: dict | None = None) -> np.ndarray:
        tokens = {"semantic": semantic.numpy(), "motion": motion.numpy()}
        whole = {"semantic": semantic_xyz.double().numpy(), "motion": motion_xyz.double().numpy()}
        if self.config.appearance == "averaged":
            tokens["semantic"], whole["semantic"] = averaged(tokens["semantic"], whole["semantic"])
        kept = {s: np.arange(len(whole[s])) for s in STREAMS} | {s: k.numpy() for s, k in (kept or {}).items()}
        self.places = {s: whole[s][kept[s]] for s in STREAMS}
        windows = dict.fromkeys(STREAMS, self.config.window)
        if self.config.kind == "cast":
            windows = {"semantic": "time", "motion": "space"}
        self.masks = {
            s: allowed(whole[s], whole[OTHER[s]], windows[s])[kept[s]][:, kept[OTHER[s]]] for s in STREAMS
        }
        tokens = {s: tokens[s][:, kept[s]] for s in STREAMS}
        kind = self.config.kind
        if kind == "late_concat_raw":
            return self.raw(tokens)
        if kind in ("late_concat", "sum"):
            ends = {s: self.tower(self.weights["towers"][s], tokens[s], s) for s in STREAMS}
            if kind == "sum":
                return sum(self.scores(self.weights["head"][s], ends[s]) for s in STREAMS)
            head, both = self.weights["head"], np.concatenate([ends["semantic"], ends["motion"]], axis=-1)
            return head[4].linear(gelu(head[1].linear(head[0].norm(both))))
        if kind.endswith("_step"):
            return self.step(tokens, kind.removesuffix("_step"))
        if kind in ("semantic", "motion", "semantic_bag"):
            stream = kind.removesuffix("_bag")
            if kind == "semantic_bag":
                self.places[stream] = self.places[stream] * [0, 1, 1]
            end = self.tower(self.weights["tower"], tokens[stream], stream)
            return self.scores(self.weights["head"], end)
        return self.exchanging(kind, tokens)

    def scores(self, head: Weights, x: np.ndarray) -> np.ndarray:
        return head[1].linear(head[0].norm(x))

    def raw(self, tokens: dict) -> np.ndarray:
        pooled = [self.weights["norm"][s].norm(tokens[s]).mean(axis=1) for s in STREAMS]
        hidden = gelu(self.weights["hidden"][0].linear(np.concatenate(pooled, axis=-1)))
        return self.weights["head"].linear(gelu(self.weights["hidden"][3].linear(hidden)))

    def step(self, tokens: dict, stream: str) -> np.ndarray:
        """A token for each place and a class token in front: one self-attention, of which the latter leaves."""
        at = self.weights["probe"]
        x = at["norm"].norm(tokens[stream])
        if at["reduce"].array("weight") is not None:
            x = at["reduce"].linear(x)
        x = x + self.on_axis(at["position"].array("weight").T, self.places[stream][:, 0])
        x = np.concatenate([np.broadcast_to(at.array("token"), (len(x), 1, x.shape[-1])), x], axis=1)
        q, k, v = np.split(at["project"]["linear"].linear(at["project"]["norm"].norm(x)), 3, axis=-1)
        found = read(q, k, v, self.config.heads, None, None, np.ones((x.shape[1], x.shape[1])))
        return self.scores(self.weights["head"], at["out"].linear(found)[:, 0])

    def on_axis(self, table: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Read a table of 16 cells of an axis at places in [0, 1], linear in between."""
        found = np.zeros((len(places), table.shape[1]))
        for n, place in enumerate(places):
            cell = np.clip(place * 16 - 0.5, 0, 15)
            low = min(int(cell), 14)
            found[n] = (1 - cell + low) * table[low] + (cell - low) * table[low + 1]
        return found

    def embed(self, at: Weights, tokens: np.ndarray, xyz: np.ndarray) -> np.ndarray:
        x = at["project"].linear(at["norm"].norm(tokens)) + at.array("stream")
        if self.config.positions == "learned":
            table = at["position"].array("weight").T.reshape(3, 16, -1)
            x = x + sum(self.on_axis(table[axis], xyz[:, axis]) for axis in range(3))
        return x

    def turned(self, xyz: np.ndarray) -> np.ndarray | None:
        return xyz if self.config.positions == "rotary" else None

    def among_themselves(self, at: Weights, x: np.ndarray, xyz: np.ndarray) -> np.ndarray:
        """A transformer block in which all tokens read one another."""
        qkv = at["project"]["linear"].linear(at["project"]["norm"].norm(x))
        q, k, v = np.split(qkv, 3, axis=-1)
        places, mask = self.turned(xyz), np.ones((x.shape[1], x.shape[1]))
        x = x + at["out"].linear(read(q, k, v, self.config.heads, places, places, mask))
        return x + at["feed_forward"].feed_forward(x)

    def end(self, at: Weights, x: np.ndarray, xyz: np.ndarray) -> np.ndarray:
        if self.config.self_blocks == 0:
            return np.mean([at["norm"].norm(x[:, n]) for n in range(x.shape[1])], axis=0)
        token = np.broadcast_to(at.array("token"), (len(x), 1, x.shape[-1]))
        x, xyz = np.concatenate([token, x], axis=1), np.concatenate([np.zeros((1, 3)), xyz])
        for i in range(self.config.self_blocks):
            x = self.among_themselves(at["blocks"][i], x, xyz)
        return x[:, 0]

    def tower(self, at: Weights, tokens: np.ndarray, stream: str) -> np.ndarray:
        xyz = self.places[stream]
        x = self.embed(at["embed"], tokens, xyz)
        for i in range(self.config.blocks):
            x = self.among_themselves(at["blocks"][i], x, xyz)
        return self.end(at["readout"], x, xyz)

    def exchanging(self, kind: str, tokens: dict) -> np.ndarray:
        x = {s: self.embed(self.weights["embed"][s], tokens[s], self.places[s]) for s in STREAMS}
        if kind == "bottleneck":
            shared = self.weights.array("shared")
            x["shared"] = np.broadcast_to(shared, (len(x["motion"]), *shared.shape))
        for i in range(self.config.blocks):
            if kind == "cast":
                x = self.narrow(self.weights["blocks"][2 * i], x)
                within = self.weights["blocks"][2 * i + 1]["blocks"]
                x = {s: self.among_themselves(within[s], x[s], self.places[s]) for s in STREAMS}
            elif kind == "joint":
                both, xyz = (np.concatenate([part[s] for s in STREAMS], axis=-2) for part in (x, self.places))
                both = self.among_themselves(self.weights["blocks"][i]["block"], both, xyz)
                count = len(self.places["semantic"])
                x = {"semantic": both[:, :count], "motion": both[:, count:]}
            else:
                step = {"gated": self.gated, "bottleneck": self.through_few}.get(kind, self.across)
                x = step(self.weights["blocks"][i], x)
        xyz = np.concatenate([self.places[s] for s in STREAMS])
        end = self.end(self.weights["readout"], np.concatenate([x[s] for s in STREAMS], axis=1), xyz)
        return self.scores(self.weights["head"], end)

    def reading(self, s: str, q, k, v) -> np.ndarray:
        places = self.turned(self.places[s]), self.turned(self.places[OTHER[s]])
        return read(q, k, v, self.config.heads, *places, self.masks[s])

    def across(self, at: Weights, x: dict) -> dict:
        readers, normed = READERS.get(self.config.kind, STREAMS), {}
        for s in STREAMS:
            both = at["project"][s]
            normed[s] = both["linear"].linear(both["norm"].norm(x[s]))
        after = dict(x)
        for s in readers:
            width = at["out"][s].array("weight").shape[1]
            q, (k, v) = normed[s][..., :width], np.split(normed[OTHER[s]][..., -2 * width :], 2, axis=-1)
            y = x[s] + at["out"][s].linear(self.reading(s, q, k, v))
            after[s] = y + at["feed_forward"][s].feed_forward(y)
        return after

    def gated(self, at: Weights, x: dict) -> dict:
        normed, after = {s: at["norm"][s].norm(x[s]) for s in STREAMS}, {}
        for s in STREAMS:
            mean = np.zeros_like(normed[s])
            for n, row in enumerate(self.masks[s]):
                if row.any():
                    mean[:, n] = normed[OTHER[s]][:, row].mean(axis=1)
            gate = 1 / (1 + np.exp(-at["gate"][s].linear(np.concatenate([normed[s], mean], axis=-1))))
            y = x[s] + gate * at["value"][s].linear(mean)
            after[s] = y + at["feed_forward"][s].feed_forward(y)
        return after

    def narrow(self, at: Weights, x: dict) -> dict:
        parts, after = {}, {}
        for s in STREAMS:
            down = at["project"][s]["norm"].norm(at["down"][s].linear(x[s]))
            parts[s] = np.split(at["project"][s]["linear"].linear(down), 3, axis=-1)
        for s in STREAMS:
            found = self.reading(s, parts[s][0], parts[OTHER[s]][1], parts[OTHER[s]][2])
            after[s] = x[s] + at["up"][s].linear(gelu(at["out"][s].linear(found)))
        return after

    def through_few(self, at: Weights, x: dict) -> dict:
        after, copies, count = {}, [], x["shared"].shape[1]
        for s in STREAMS:
            xyz = np.concatenate([self.places[s], np.zeros((count, 3))])
            y = self.among_themselves(at["blocks"][s], np.concatenate([x[s], x["shared"]], axis=1), xyz)
            after[s] = y[:, :-count]
            copies.append(y[:, -count:])
        return after | {"shared": (copies[0] + copies[1]) / 2}
