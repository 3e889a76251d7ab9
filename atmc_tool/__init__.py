"""Compress image classifiers that must stay robust, ship them as one small ONNX file, and prove it on that file.

On the command line, from a trained network to a verdict that a release pipeline can gate on:

    atmc-tool compress model.pt && atmc-tool export --onnx && atmc-tool verify

From Python, a compressed file back to a torch network; both take the same images, float32 (N, C, H, W) in [0, 1]:

    >>> import atmc_tool
    >>> network = atmc_tool.load("atmc-run/model.atmc")
    >>> network = atmc_tool.load("atmc-run/model.atmc", model=MyNet())  # a network of your own

The exported file needs nothing of ours to run:

    >>> import onnxruntime
    >>> session = onnxruntime.InferenceSession("atmc-run/model.onnx")
    >>> logits = session.run(["logits"], {"input": images})  # float32 (N, C, H, W) in [0, 1]
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporters.loading import load

try:
    __version__ = version("atmc-tool")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+source"

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load`, imported when it is asked for: it needs torch, and `import atmc_tool` does not."""
    if name == "load":
        from exporters.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
