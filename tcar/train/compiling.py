"""How a model computes in training: compiled, or with less memory."""

import inspect
from collections.abc import Callable
from itertools import count
from types import FunctionType, MethodType

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_NUMBERS = count()


def compile_alone(model: nn.Module, **options) -> None:
    """Have torch.compile (with its `options`) make the model's forward pass, in place, for the shapes that come.

    The compiler keeps what it has made, and what it has seen of shapes, with a function's code, which all models of a
    class share: the second configuration of a process was compiled for any shape, which failed in torch 2.11, and heads
    trained together used up each other's recompilations. So each model has code of its own, under a name of its own.
    """
    plain = inspect.unwrap(type(model).forward)
    code = plain.__code__.replace(co_name=f"{plain.__name__}_{next(_NUMBERS)}")
    own = FunctionType(code, plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__)
    own.__kwdefaults__ = plain.__kwdefaults__
    model.forward = torch.compile(MethodType(own, model), dynamic=False, **options)


def checkpoint_blocks(model: nn.Module) -> None:
    """Compute blocks a second time in the backward pass instead of keeping what is inside them.

    Those are the blocks of a baseline, and the ones of a stream that have an adapter: the same numbers, less memory
    (Chen et al. 2016, arXiv:1604.06174). The blocks of a fusion have a switch of their own, `fusion_checkpointing`.
    """
    if hasattr(model, "checkpointing"):
        model.checkpointing = True
    elif hasattr(model, "network"):
        model.network.gradient_checkpointing_enable({"use_reentrant": False})
    for block in _adapted_blocks(model):
        block.forward = _again(block.forward)


def _adapted_blocks(model: nn.Module) -> list[nn.Module]:
    stream = getattr(model, "semantic", None)
    return list(stream.blocks)[-len(stream.adapters) :] if stream is not None and len(stream.adapters) else []


def _again(forward: Callable) -> Callable:
    def twice(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return twice
