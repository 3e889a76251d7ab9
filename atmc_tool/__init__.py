"""Compress image classifiers that must stay robust, ship them as one small ONNX file, and prove it on that file.

On the command line, from a trained network to a verdict that a release pipeline can gate on:

    atmc-tool compress model.pt && atmc-tool export --onnx && atmc-tool verify

From Python, a compressed file back to the weights of the network:

    >>> from exporters.atmc_file import read_atmc
    >>> model = read_atmc(Path("atmc-run/model.atmc"))
    >>> weights = model.state()  # name -> dense NumPy array, as in the network's state dict

The exported file needs nothing of ours to run:

    >>> import onnxruntime
    >>> session = onnxruntime.InferenceSession("atmc-run/model.onnx")
    >>> logits = session.run(["logits"], {"input": images})  # float32 (N, C, H, W) in [0, 1]
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("atmc-tool")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+source"

__all__ = ["__version__"]
