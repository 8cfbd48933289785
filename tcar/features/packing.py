"""How tokens are kept: two bytes a number, or one byte a number and a scale for each token."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tcar.ground.errors import TcarError

TokenType = Literal["fp16", "bf16", "int8"]
TOKEN_TYPES = ("fp16", "bf16", "int8")
_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
_LEVELS = 127  # of int8 on each side of zero: -128 has no counterpart


class FeatureError(TcarError, RuntimeError):
    """Features that are not in the store, or could not be computed."""


def row_type(token_type: TokenType, tokens: int, width: int) -> np.dtype:
    """One view of a clip as it lies in the file; numpy has no bfloat16, whose bits are kept in unsigned integers."""
    if token_type == "int8":
        return np.dtype([("values", "i1", (tokens, width)), ("scales", "<f4", (tokens,))])
    return np.dtype(({"fp16": "<f2", "bf16": "<u2"}[token_type], (tokens, width)))


def parts_of(rows: Shaped[np.ndarray, "rows ..."]) -> tuple[Shaped[np.ndarray, "rows n ..."], ...]:
    """The parts of tokens in rows of a `row_type`, without a copy."""
    return (rows,) if rows.dtype.names is None else tuple(rows[name] for name in rows.dtype.names)


def packed(tokens: Float[Tensor, "b n d"], token_type: TokenType) -> tuple[Shaped[Tensor, "b n ..."], ...]:
    """Tokens as they are kept, in the parts that `unpacked` takes.

    int8: the greatest number of each token is 127 of its steps, and every number the nearest step, of two the even one.
    """
    if token_type != "int8":
        return (tokens.to(_HALF[token_type], copy=True),)
    tokens = tokens.float()
    scales = tokens.abs().amax(-1) / _LEVELS
    steps = scales.clamp(min=torch.finfo(scales.dtype).tiny)  # a token of zeros has no step to divide by
    return (tokens / steps[..., None]).round().to(torch.int8), scales


def unpacked(parts: Sequence[Shaped[Tensor, "b n ..."]]) -> Float[Tensor, "b n d"]:
    """The tokens in single precision that `FeatureStore.read` gave in parts, on the device where these are."""
    values = parts[0].float()
    return values if len(parts) == 1 else values.mul_(parts[1][..., None])


def typed(part: Shaped[np.ndarray, "..."]) -> Shaped[Tensor, "..."]:
    """A part as torch knows it."""
    tensor = torch.from_numpy(part)
    return tensor.view(torch.bfloat16) if part.dtype == np.uint16 else tensor


def untyped(part: Shaped[Tensor, "..."]) -> Shaped[np.ndarray, "..."]:
    """A part as numpy can keep it; the reverse of `typed`."""
    return (part.view(torch.uint16) if part.dtype == torch.bfloat16 else part).numpy()
