"""The one repair of an environment: torchvision built for another torch.

The published Linux wheel of torchvision is a CUDA build. Beside a CPU build of torch its compiled part cannot
load, its operators are never declared, and `import torchvision` dies with "operator torchvision::nms does not
exist", which takes timm, torchmetrics and transformers' image models with it. With the schemas of the two
operators declared that are named at import, all but `torchvision.ops` works. Where the compiled part loads,
nothing is changed.
"""

import importlib.abc
import importlib.machinery
import sys

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# A torch.library.Library takes its operators with it when it is collected.
_libraries: list[object] = []


def missing_operators() -> list[str]:
    """The operators torchvision names at import but cannot provide here; empty on a healthy installation."""
    import torch

    package = importlib.machinery.PathFinder.find_spec("torchvision")
    if package is None:
        return []
    extension = importlib.machinery.PathFinder.find_spec("_C", list(package.submodule_search_locations))
    try:
        if extension is None:
            raise OSError("torchvision has no compiled part")
        torch.ops.load_library(extension.origin)
    except OSError:
        return [name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    return []


def declare_operators() -> list[str]:
    """Declare the missing operators, and say which they were."""
    missing = missing_operators()
    if missing:
        import torch

        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            library.define(SCHEMAS[name])
        _libraries.append(library)
    return missing


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Finds nothing; declares the operators when torchvision is about to be imported, so that `import tcar`
    stays free of torch."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            declare_operators()


def install() -> None:
    """Have the operators declared before the first import of torchvision; a no-op when that has happened."""
    installed = any(isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path)
    if "torchvision" not in sys.modules and not installed:
        sys.meta_path.insert(0, _BeforeTorchvision())
