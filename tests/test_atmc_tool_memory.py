"""What fits into memory: against torch's own count of a real step, and with control groups of a temporary folder."""

from pathlib import Path

import pytest
import torch
from torch import nn

from atmc_tool import memory
from atmc_tool.compute import Compute, select_compute
from atmc_tool.config import AttackConfig, ComputeConfig
from atmc_tool.data import load_data
from atmc_tool.errors import InputError
from atmc_tool.memory import SAFETY, available_bytes, bytes_per_image, fitting_micro_batch
from atmc_tool.models import resolve_architecture
from atmc_tool.threat_model import parse_threat_model
from atmc_tool.training_attack import StepAttack
from atmc_tool.training_step import Setup, loss_and_gradients

CPU = torch.device("cpu")
GROUPS_1 = "9:name=systemd:/\n4:memory:/pod/job\n3:cpuset:/\n0::/\n"
GROUPS_2 = "0::/pod/job\n"


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_the_system_counts_what_it_has(tmp_path: Path) -> None:
    put(tmp_path, {"proc/meminfo": "MemTotal: 99 kB\nMemAvailable:  42 kB\n"})
    assert available_bytes(CPU, tmp_path) == 42 * 1024
    assert available_bytes(CPU, tmp_path / "nowhere") is None
    assert available_bytes(torch.device("meta"), tmp_path) is None
    here = available_bytes(CPU)
    assert here is None or here > 0


@pytest.mark.parametrize("limited", ["pod/job", "pod", ""])
def test_the_tightest_group_of_version_2_counts(tmp_path: Path, limited: str) -> None:
    put(tmp_path, {"proc/meminfo": "MemAvailable: 99999 kB\n", "proc/self/cgroup": GROUPS_2})
    for group in ("", "pod", "pod/job"):
        limit = "5000\n" if group == limited else "max\n"
        folder = f"sys/fs/cgroup/{group}"
        put(tmp_path, {f"{folder}/memory.max": limit, f"{folder}/memory.current": "2000\n"})
        put(tmp_path, {f"{folder}/memory.stat": "anon 1500\ninactive_file 300\nactive_file 200\n"})
    assert available_bytes(CPU, tmp_path) == 5000 - 2000 + 300


def test_groups_of_version_1(tmp_path: Path) -> None:
    put(tmp_path, {"proc/meminfo": "MemAvailable: 99999 kB\n", "proc/self/cgroup": GROUPS_1})
    for group, limit in (("pod/job/", 7000), ("", 2**63 - 4096)):
        folder = f"sys/fs/cgroup/memory/{group}"
        put(tmp_path, {f"{folder}memory.limit_in_bytes": f"{limit}\n", f"{folder}memory.usage_in_bytes": "6500\n"})
        put(tmp_path, {f"{folder}memory.stat": "inactive_file 1\ntotal_inactive_file 250\n"})
    assert available_bytes(CPU, tmp_path) == 750


def test_a_group_above_its_limit_leaves_nothing(tmp_path: Path) -> None:
    put(tmp_path, {"proc/self/cgroup": GROUPS_2, "sys/fs/cgroup/pod/job/memory.max": "10"})
    put(tmp_path, {"sys/fs/cgroup/pod/job/memory.current": "20"})
    assert available_bytes(CPU, tmp_path) == 0


def test_what_an_image_keeps_by_hand() -> None:
    """A linear layer keeps its input, ReLU its output, which is the next layer's input: once, float32."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 10))
    assert bytes_per_image(net, (3, 2, 2), None, CPU) == 4 * (12 + 7)


def network(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    torch.manual_seed(0)
    architecture = resolve_architecture(name)
    assert architecture.image_shape is not None
    return architecture.build(), architecture.image_shape


def peak(name: str, batch_size: int, dtype: torch.dtype | None, micro_batch: int | None = None) -> int:
    """Most bytes that torch's allocator handed out during the passes of a step, by torch's profiler."""
    net, shape = network(name)
    data, threat_model = load_data("digits"), parse_threat_model("0.1")
    compute = Compute(dtype, micro_batch)
    setup = Setup(net, (0.0,), (1.0,), CPU, data, threat_model, AttackConfig(steps=1), 0, compute)
    images, labels = torch.rand(batch_size, *shape), torch.zeros(batch_size, dtype=torch.int64)
    weights = dict(net.named_parameters())
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        loss_and_gradients(setup, weights, images, labels, eps=0.1, weight=0.5, attack=StepAttack())
    assert profile.kineto_results is not None
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(("name", "n"), [("digits-cnn", 64), ("lenet-relu", 64), ("resnet20", 4)])
def test_the_estimate_is_an_upper_bound_and_not_twice_too_high(name: str, n: int, dtype: torch.dtype | None) -> None:
    few, more = peak(name, n, dtype), peak(name, 3 * n, dtype)
    net, shape = network(name)
    estimate = SAFETY * bytes_per_image(net, shape, dtype, CPU)
    assert 0.5 * estimate < (more - few) / (2 * n) <= estimate


def test_parts_take_less_memory() -> None:
    assert peak("resnet20", 12, None, micro_batch=3) < 0.5 * peak("resnet20", 12, None)


def test_the_network_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 10))
    net.eval()
    net[1].train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    random = torch.get_rng_state()
    assert bytes_per_image(net, (1, 8, 8), None, CPU) > 0
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in net.modules()] == [False, False, True, False, False, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_whole_batch_where_it_fits_or_nothing_is_known() -> None:
    assert fitting_micro_batch(128, 1000, 0, None) is None
    assert fitting_micro_batch(128, 1000, 1000, 10**9) is None
    assert fitting_micro_batch(1, 1000, 0, 10**6) is None


@pytest.mark.parametrize("batch_size", [2, 3, 5, 9, 64, 100, 127, 128, 129])
@pytest.mark.parametrize("fit", [2, 3, 5, 31, 64, 100])
def test_as_few_parts_as_fit_and_nearly_equal_ones(batch_size: int, fit: int) -> None:
    per_image, n_parameters = 1000, 50
    each = SAFETY * per_image
    available = int((fit * each + 4 * memory.COPIES * n_parameters) / memory.SHARE) + 1
    size = fitting_micro_batch(batch_size, per_image, n_parameters, available)
    if batch_size <= fit:
        assert size is None
    else:
        assert size is not None
        assert 2 <= size <= fit
        parts = -(-batch_size // size)
        assert parts == -(-batch_size // fit)  # no more than there have to be
        assert size == -(-batch_size // parts)  # and as equal as can be


def test_too_little_memory_for_two_images() -> None:
    with pytest.raises(InputError, match=r"expected 100 MB for two images at once, got 50 MB free.*micro_batch=2"):
        fitting_micro_batch(128, int(40e6 / SAFETY), 0, 50_000_000)


def test_a_batch_is_split_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    net, shape = network("resnet20")
    per_image = SAFETY * bytes_per_image(net, shape, None, CPU)
    n_parameters = sum(parameter.numel() for parameter in net.parameters())
    free = int((40 * per_image + 4 * memory.COPIES * n_parameters) / memory.SHARE)
    monkeypatch.setattr("atmc_tool.compute.available_bytes", lambda _: free)
    config = ComputeConfig(precision="fp32")
    compute = select_compute(config, net, shape, 128, CPU)
    assert compute.micro_batch == 32
    assert compute.notes == (
        "training on cpu, in float32",
        f"batches of 128 images go through the network 32 at a time: {memory.in_words(free)} are free",
    )
    assert select_compute(config, net, shape, 32, CPU).micro_batch is None
    assert select_compute(config.model_copy(update={"micro_batch": 7}), net, shape, 128, CPU).micro_batch == 7
