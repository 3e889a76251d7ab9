"""What to do where a check of `verify` fails: docs/verify.md's table in a sentence or two."""

from collections.abc import Mapping
from types import MappingProxyType

ELSEWHERE = "See this check in docs/verify.md."
ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "signature": "The file is not the one that was signed, or another key signed it: don't ship it.",
        "source": "One of model.onnx and model.atmc was made anew: export again with --overwrite.",
        "metadata": "What the file says of itself is not what model.atmc says: export again with --overwrite.",
        "held-out": "The images that were measured had been trained or selected on: measure on others.",
        "statement": "This is a fault of the tool: please report it.",
        "weight-parity": "The file was changed after the export, by a simplifier, a converter or damage. Export again "
        "and ship that file.",
        "same-logits": "Look at weight-parity first: a changed file explains it. Else please report it.",
        "logits": "A softmax at the end hides gradients: remove it. For NaN, look at the training's loss.",
        "normalisation": "Put the normalisation into the graph: the file must take RGB images in [0, 1] as they are.",
        "determinism": "Remove noise and dropout from the graph, and put batch norms into evaluation mode.",
        "providers": "The file answers otherwise on another provider: ship it for one, or find out which of its "
        "operators rounds there.",
        "white-box": "The file can't be attacked by its own gradient: export again with operators that have a gradient "
        "rule and opset 16 or later.",
        "perturbations": "An attack left the threat model. This is a fault of the tool: please report it.",
        "recomputed": "Results depend on the session or the order: look at determinism, and try --provider cpu.",
        "white-box-strongest": "Gradients may be masked, and the stated robustness can't be believed. Raise --steps "
        "and --restarts first.",
        "gradients": "Gradients are saturated or masked: look for operators that round or clip, and for very large "
        "logits.",
        "robustness-judged": "Nothing was proved about robustness: give --min-robust, or measure as at compression.",
        "large-eps": "The attack does not work on this network, so its numbers mean nothing. Gradients may be masked.",
        "undefended": "The attack misses images that are known to fall, so its numbers mean nothing: raise --steps. A "
        "network that you named may have a defence, or the attack be too weak at this eps.",
        "attack-order": "A weaker attack does better than a stronger one: gradients may be masked.",
        "eps-curve": "More eps does not help the attack: gradients may be masked.",
        "losses-agree": "One loss attacks much better than the other: look for saturated logits, and raise --restarts.",
        "converged": "A longer attack still finds more, so the stated robustness is too high: raise --steps and "
        "--restarts.",
        "grey-levels": "Robustness changes where images are stored in 8 bits: state the smaller number.",
        "sample-size": "Measure on more images (-n), or take a larger test set.",
        "attack-budget": "Attack at least as hard as the policy wants: --attack, --norm, --eps, --steps, --restarts.",
        "required": "A check that the policy requires did not pass: see that one.",
        "clean-loss": "The file loses more clean accuracy against its baseline than the policy allows, or there are "
        "too few images to exclude it: compress less, or measure on more.",
        "robust-loss": "The file loses more robust accuracy against its baseline than the policy allows, or there are "
        "too few images to exclude it: compress less, or measure on more.",
        "min-clean": "The network is less accurate than required, or there are too few images to show it.",
        "min-robust": "Compress less (--keep, --size), train longer, start from a more robust network, or measure on "
        "more images.",
        "clean-drop": "The exported file differs from the compressed network: look at weight-parity and the provider.",
        "robust-drop": "The exported file differs from the compressed network: look at weight-parity and the provider.",
        "max-bytes": "Compress to fewer bytes (compress --size), or raise the limit.",
    }
)
