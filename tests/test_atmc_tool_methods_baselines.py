"""NAP, AP, Al0 and ALR: the baselines of arXiv:1902.03538."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import click
import numpy as np
import pytest
import torch
from conftest import Cli
from pydantic import ValidationError
from torch import nn

from atmc_tool.budget import Budget
from atmc_tool.cli import compress
from atmc_tool.compressed import CompressedWeight
from atmc_tool.config import CompressConfig
from atmc_tool.methods import compression_method, least_kept
from atmc_tool.methods.alr import Alr, entries, pooled_ranks
from atmc_tool.methods.method import CompressionMethod
from atmc_tool.models import resolve_architecture
from exporters.atmc_file import read_atmc

KEPT = 1000


def network() -> nn.Module:
    torch.manual_seed(0)
    return resolve_architecture("digits-cnn").build()


def method(name: str, kept: int = KEPT) -> CompressionMethod:
    config = CompressConfig.model_validate({"method": name})
    return compression_method(network(), config, Budget(kept))


def moved(made: CompressionMethod, progress: float, step: int) -> dict[str, np.ndarray]:
    """The weights of the step at `progress`, after which every parameter moves at random."""
    weights = {name: weight.detach().numpy().copy() for name, weight in made.weights(progress).items()}
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    made.after_step(progress, step)
    return weights


def matrices(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: weight for name, weight in weights.items() if weight.ndim > 1}


def test_the_option_offers_every_method() -> None:
    (option,) = (parameter for parameter in compress.command.params if "--method" in parameter.opts)
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == get_args(CompressConfig.model_fields["method"].annotation)


def test_a_method_is_other_defaults_and_what_is_stated_wins() -> None:
    al0 = CompressConfig.model_validate({"method": "al0"})
    assert (al0.projection, al0.path, al0.bits, al0.quantize_share) == ("hard", 0, None, 0)
    assert CompressConfig.model_validate({"method": "nap"}).natural
    quantized = CompressConfig.model_validate({"method": "ap", "bits": 8, "quantize_share": 0.3})
    assert (quantized.projection, quantized.bits, quantized.natural) == ("fixed", 8, False)
    assert CompressConfig.model_validate(al0.model_dump()) == al0
    assert CompressConfig.model_validate({"method": "al0", "bits": 4}).quantize_share == 0.25
    with pytest.raises(ValidationError, match="quantize_share above 0"):
        CompressConfig.model_validate({"method": "al0", "bits": 4, "quantize_share": 0})
    with pytest.raises(ValidationError, match="alr has no codebooks"):
        CompressConfig.model_validate({"method": "alr", "bits": 4})


def test_ap_keeps_the_largest_of_the_start_for_good() -> None:
    start = {name: p.detach().numpy().copy() for name, p in network().named_parameters()}
    magnitudes = np.sort(np.concatenate([np.abs(w).ravel() for w in matrices(start).values()]))[::-1]
    support = {name: np.abs(weight) >= magnitudes[KEPT - 1] for name, weight in matrices(start).items()}
    made = method("ap")
    for step in range(1, 5):
        for name, weight in matrices(moved(made, step / 5, step)).items():
            np.testing.assert_array_equal(weight != 0, support[name])
    made.finish()
    assert sum(f.kept for w in made.compressed().values() for f in w.factors.values()) == KEPT


def test_al0_projects_after_every_step() -> None:
    made = method("al0")
    supports = []
    for step in range(1, 5):
        weights = matrices(moved(made, step / 5, step))
        if step > 1:  # what the first step runs on is the dense start
            assert sum(np.count_nonzero(weight) for weight in weights.values()) == KEPT
            supports.append(np.concatenate([weight.ravel() != 0 for weight in weights.values()]))
    assert not np.array_equal(supports[0], supports[-1])  # the largest are not the same for good


def test_ranks_follow_the_pooled_singular_values() -> None:
    """Beside a slow count: the ranks are those of some threshold, and the next value would not fit."""
    generator = np.random.default_rng(0)
    shapes = {"a": (20, 30), "b": (8, 50), "c": (40, 10)}
    spectra = {
        name: torch.tensor(np.sort(generator.exponential(scale, min(shape)))[::-1].copy())
        for scale, (name, shape) in enumerate(shapes.items(), 1)
    }
    for kept in (200, 500, 900, 1200):
        ranks = pooled_ranks(spectra, shapes, kept)
        assert sum(entries(*shapes[name], rank) for name, rank in ranks.items()) <= kept
        values = sorted((float(v) for name in shapes for v in spectra[name][1:]), reverse=True)
        chosen = sum(ranks.values()) - len(ranks)
        threshold = values[chosen - 1] if chosen else np.inf
        assert ranks == {name: 1 + sum(float(v) >= threshold for v in spectra[name][1:]) for name in shapes}
        more = next(name for name in shapes if values[chosen] in spectra[name][1:].tolist())
        assert sum(entries(*shapes[n], r + (n == more)) for n, r in ranks.items()) > kept


def test_alr_is_the_best_approximation_of_its_ranks_at_the_start() -> None:
    """Eckart and Young 1936: the error is the singular values that are left out."""
    net = network()
    made = compression_method(net, CompressConfig.model_validate({"method": "alr"}), Budget(6000))
    assert isinstance(made, Alr)
    assert made.kept <= 6000
    start = dict(net.named_parameters())
    for name, weight in matrices(moved(made, 0.0, 1)).items():
        before = start[name].detach().flatten(1).numpy()
        after = weight.reshape(before.shape)
        values = np.linalg.svd(before, compute_uv=False)
        rank = np.linalg.matrix_rank(after, tol=1e-4)
        assert np.linalg.norm(before - after) == pytest.approx(np.linalg.norm(values[rank:]), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kept", [2000, 6000, 52768])
def test_the_file_holds_what_alr_trained(kept: int) -> None:
    made = method("alr", kept)
    for step in range(1, 4):
        moved(made, step / 4, step)
    made.finish()
    shipped = made.shipped(1.0)
    total = 0
    for name, weight in made.compressed().items():
        np.testing.assert_allclose(weight.dense(), shipped[name].numpy(), rtol=1e-4, atol=1e-4)
        total += sum(factor.kept for factor in weight.factors.values())
    assert total <= kept


def test_alr_meets_a_limit_also_where_zeros_of_dead_units_move() -> None:
    def measure(weights: Mapping[str, CompressedWeight]) -> int:
        return sum(4 * f.kept for weight in weights.values() for f in weight.factors.values())

    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 64), nn.Linear(64, 10))
    with torch.no_grad():
        for parameter in net[1].parameters():
            parameter[:40] = 0
    made = compression_method(net, CompressConfig.model_validate({"method": "alr"}), Budget(0, 8000, measure))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    made.finish()
    assert measure(made.compressed()) <= 8000


def test_alr_meets_a_limit_in_bytes() -> None:
    def measure(weights: object) -> int:
        assert isinstance(weights, dict)
        return 100 + sum(4 * factor.kept for weight in weights.values() for factor in weight.factors.values())

    config = CompressConfig.model_validate({"method": "alr"})
    made = compression_method(network(), config, Budget(50_000, limit=20_000, measure=measure))
    assert measure(made.compressed()) <= 20_000
    assert made.kept > 4000


def test_the_least_that_can_be_kept() -> None:
    net = network()
    sizes = [(len(p), p[0].numel()) for p in net.parameters() if p.dim() > 1]
    assert least_kept(net, CompressConfig.model_validate({"method": "alr"})) == sum(m + n for m, n in sizes)
    assert least_kept(net, CompressConfig()) == len(sizes)


@pytest.mark.parametrize("name", ["nap", "ap", "al0", "alr", "admm", "hydra", "lwm"])
def test_every_method_goes_through_compress_export_and_verify(
    name: str, cli: Cli, digits_run: Path, tmp_path: Path
) -> None:
    for file in ("model.pt", "atmc.yaml"):
        (tmp_path / file).write_bytes((digits_run / file).read_bytes())
    short = "--max-steps 12 --set attack.steps=1 --set compress.checkpoint_steps=5 -q"
    done = cli(f"compress model.pt --method {name} --keep 0.2 {short} --json", tmp_path)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["kept"]["total"] <= 0.2 * report["kept"]["weights"]
    assert "robust_accuracy" in report["metrics"]["compressed"]  # also of what was trained without attacks
    line = json.loads((tmp_path / "atmc-run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert ("validation_robust" in line) == (name != "nap")
    assert read_atmc(tmp_path / "atmc-run" / "model.atmc").manifest["config"]["compress"]["method"] == name
    assert cli("export --onnx -q", tmp_path).code == 0
    verified = cli("verify --json -q", tmp_path)
    assert verified.code in (0, 5), verified.err
    checks = {check["name"]: check["status"] for check in json.loads(verified.out)["verdict"]["checks"]}
    assert checks["weight-parity"] == "passed"


def test_alr_below_rank_one_is_infeasible(cli: Cli, digits_run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes((digits_run / "model.pt").read_bytes())
    failed = cli("compress model.pt --method alr --keep 0.01 --dry-run", tmp_path)
    assert failed.code == 6
    assert "expected keep of at least 0.0" in failed.error


def test_a_preset_does_not_make_a_method_something_else(cli: Cli, folder: Path) -> None:
    for method, expected in (("al0", ("hard", None, "none")), ("hydra", ("scores", None, "none"))):
        done = cli(f"compress model.pt --preset published --method {method} --keep 0.1 --dry-run --json", folder)
        assert done.code == 0, done.err
        section = json.loads(done.out)["config"]["compress"]
        assert (section["projection"], section["bits"], section["factors"]) == expected
    done = cli("compress model.pt --preset published --method al0 --bits 3 --keep 0.1 --dry-run --json", folder)
    assert json.loads(done.out)["config"]["compress"]["bits"] == 3


def test_a_structure_says_what_it_keeps_whole_and_where_to_go_on(cli: Cli, folder: Path) -> None:
    short = "--max-steps 2 --set attack.steps=1 --set evaluation.n=50 --set evaluation.restarts=1 -q"
    done = cli(f"compress model.pt --structure filter --keep 0.5 {short} -o filters", folder)
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    assert "kept whole, for the structure does not fit them: fc1.weight, fc2.weight" in text
    planned = cli("compress model.pt --structure filter --keep 0.5 --dry-run", folder)
    assert "fit them: fc1.weight, fc2.weight" in " ".join(planned.out.split())
    assert "kept whole" not in cli("compress model.pt --keep 0.5 --dry-run", folder).out
    assert "next: atmc-tool export filters --onnx, then atmc-tool verify filters" in text
    assert cli("export filters --onnx -q", folder).code == 0
    refused = cli("compress model.pt --structure 2:4 --keep 0.9 --dry-run", folder)
    assert (refused.code, "2:4 keeps at most 0.5" in refused.error) == (2, True)
