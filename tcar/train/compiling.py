"""Compiled models that know nothing of one another, in one process."""

import inspect
from itertools import count
from types import FunctionType, MethodType

import torch
from torch import nn

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
