"""`atmc-tool train`: a dense network, adversarially trained, in a file that says what it is."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from atmc_tool.cli.options import (
    PATH,
    as_json,
    config_sources,
    network_and_data,
    new_or_old,
    schedule,
    verbosity,
)
from atmc_tool.errors import UsageError

if TYPE_CHECKING:
    from atmc_tool.cli.run_folder import RunFolder
    from atmc_tool.config import Config
    from atmc_tool.data import DataSet
    from atmc_tool.distributed import Ranks
    from atmc_tool.model_card import ModelCard
    from atmc_tool.models import Architecture

SUFFIXES = (".pt", ".safetensors")


@click.command("train", epilog="Example: atmc-tool train --data digits --arch digits-cnn --eps 0.1 -o model.pt")
@click.option("-o", "--output", type=PATH, default=Path("model.pt"), show_default=True, help=".pt or .safetensors.")
@network_and_data
@schedule("train")
@config_sources
@new_or_old
@as_json
@verbosity
def command(output: Path, resume: bool, overwrite: bool, as_json: bool) -> None:
    """Train a dense network against attacks, or naturally.

    Checkpoints and metrics go to a folder beside the output: model.train for model.pt. Ctrl-C saves the state.
    """
    from atmc_tool.cli.launch import is_first, joined, restarted, several
    from atmc_tool.cli.run_folder import RunFolder
    from atmc_tool.cli.settings import resolve
    from atmc_tool.config import to_yaml
    from atmc_tool.settings import read_yaml

    folder = RunFolder(output.with_suffix(".train"))
    if output.suffix not in SUFFIXES:
        raise UsageError(f"can't write a network to {output}", expected="a name that ends in .pt or .safetensors")

    def check_free() -> None:
        folder.check_free(output, resume=resume, overwrite=overwrite)
        if output.exists() and not (resume or overwrite):
            raise UsageError(f"{output} exists", hint="--overwrite replaces it, -o names another file")

    if not several():  # said at once: torch takes seconds to load
        check_free()
    with joined() as ranks:
        again = restarted(ranks) and not resume
        if not again:
            ranks.from_first(check_free)
        config = resolve(ranks.from_first(lambda: read_yaml(folder.config)) if resume else None)
        if again:  # a run that was begun goes on
            resume = ranks.from_first(lambda: folder.was_begun_with(to_yaml(config)))
        if again and not resume:
            ranks.from_first(check_free)
        card = train_dense(config, output, folder, ranks, resume=resume)
    if is_first():
        _show(output, card, as_json)


def train_dense(config: "Config", output: Path, folder: "RunFolder", ranks: "Ranks", *, resume: bool) -> "ModelCard":
    """Train, measure, write `output`, the first rank alone; its card.

    Raises:
        UsageError: something is stated nowhere.
        Else as `run_training`.
    """
    import torch

    from atmc_tool.cli.data_source import load_configured
    from atmc_tool.cli.measurement import measure
    from atmc_tool.cli.report import trained_results
    from atmc_tool.cli.subject import check_fit, conclude, per_channel, run_training, training_setup
    from atmc_tool.devices import select_device
    from atmc_tool.files import remove_leftovers
    from atmc_tool.methods.dense import Dense
    from atmc_tool.model_card import ModelCard
    from atmc_tool.models.writing import write_model
    from atmc_tool.tied import own_state

    threat_model = config.threat_model.parse()
    if threat_model is None and not config.train.natural:
        raise UsageError("which threat model?", expected="--eps such as 8/255 or 0.1, or --objective natural")
    device = ranks.together(lambda: select_device(config.device, ranks))
    data = ranks.together(lambda: load_configured(config))
    architecture = stated_architecture(config, data)
    torch.manual_seed(config.seed)
    network = architecture.build(data.n_classes)
    check_fit(network, architecture.name, data, architecture.image_shape)
    channels = data.image_shape[0]
    mean = per_channel("model.mean", config.model.mean or architecture.mean, channels)
    std = per_channel("model.std", config.model.std or architecture.std, channels)
    attacked = None if config.train.natural else threat_model
    setup = training_setup(config, config.train, network, mean, std, device, data, attacked, ranks)
    run_training(config, "train", setup, Dense(network, config.train), folder, select=True, resume=resume)
    card = ModelCard(
        arch=architecture.name,
        image_shape=data.image_shape,
        n_classes=data.n_classes,
        class_names=data.class_names,
        mean=mean,
        std=std,
        data=data.name,
        eps=threat_model.text if threat_model else None,
        norm=config.threat_model.norm,
        seed=config.seed,
        metrics=measure(
            network,
            own_state(network),
            mean,
            std,
            data,
            threat_model,
            config.evaluation,
            "the trained network",
            ranks,
        ),
    )
    if ranks.first:
        remove_leftovers(output.parent, output.name)
        write_model(output, network.state_dict(), card)
        conclude(config, folder.path, trained_results(output, card))
    return card


def stated_architecture(config: "Config", data: "DataSet") -> "Architecture":
    """The network that the configuration names.

    Raises:
        UsageError: it names none.
    """
    from atmc_tool.models import ARCHITECTURES, resolve_architecture

    if config.model.arch is not None:
        return resolve_architecture(config.model.arch)
    fitting = [known.name for known in ARCHITECTURES.values() if known.image_shape == data.image_shape]
    hint = f"{', '.join(fitting)} fits {data.name}" if fitting else ""
    raise UsageError("which network?", expected="--arch NAME, pkg.mod:callable or file.py:callable", hint=hint)


def _show(output: Path, card: "ModelCard", as_json: bool) -> None:
    from atmc_tool.cli.render import show_json, show_line, show_table
    from atmc_tool.plugins import is_callable_spec

    size = output.stat().st_size
    if as_json:
        show_json({"model": str(output), "bytes": size, "card": card.model_dump(mode="json")})
        return
    measured = card.metrics
    rows: list[list[object]] = [["clean accuracy", measured["clean_accuracy"]]]
    if "balanced_clean_accuracy" in measured:
        rows.append(["clean accuracy, mean over classes", measured["balanced_clean_accuracy"]])
    if "robust_accuracy" in measured:
        attack = f"PGD-{measured['steps']}, worst of {measured['restarts']}, eps {measured['eps']}"
        rows.append([f"robust accuracy ({attack})", measured["robust_accuracy"]])
    if "balanced_robust_accuracy" in measured:
        rows.append(["robust accuracy, mean over classes", measured["balanced_robust_accuracy"]])
    show_table(f"{card.arch} on {measured['n']} test images of {card.data}", ["measured", "value"], rows)
    arch = f" --arch {card.arch}" if is_callable_spec(card.arch) else ""
    show_line(f"{output} ({size:,} bytes)   next: atmc-tool compress {output}{arch}")
