"""A fine-tuned classifier on disk: a folder of transformers, and ``finetune.json`` beside it.

Merged, the folder holds a whole model: ``AutoModelForSequenceClassification.from_pretrained``
loads it, and needs nothing of whet. As an adapter it is a folder of peft. Weights are safetensors.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from whet import __version__
from whet.errors import WhetError
from whet.extras import require
from whet.finetune.model import ADAPTER, PURPOSE, Network, Weights, quiet
from whet.finetune.settings import Settings
from whet.store import read_json, write_atomic, write_json

FILE = "finetune.json"
FORMAT, FORMAT_VERSION = "whet-finetuned", 1
CARD = """\
---
library_name: {library}
pipeline_tag: text-classification
---

# A classifier that whet {version} fine-tuned

- Model that it began with: `{model}`
- Classes: {classes}
- Output: {output}
- Trained: {tune}; {epochs} epochs, learning rate {learning_rate}
- Texts: at most {max_length} tokens

{about}

It was trained on labels that may be wrong. How good it is, only gold labels can say.
"""


def save(
    network: Network,
    folder: Path,
    merge: bool,
    classes: list[Any] | None,
    about: str,
    history: list[dict[str, Any]],
) -> None:
    """Write the weights that the network holds, its tokenizer, a card and, last, finetune.json.

    Parameters
    ----------
    network : Network
    folder : Path
        Created if absent.
    merge : bool
        Merge adapters, where there are any.
    classes : list or None
        Names of the classes.
    about : str
        A paragraph of the card.
    history : list of dict
    """
    if classes is not None and len(classes) != network.n_classes:
        raise WhetError(f"{len(classes)} names for {network.n_classes} classes: name each class")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).unlink(missing_ok=True)
    whole = merge or network.settings.tune == "full"
    with quiet():
        (_save_whole if whole else _save_adapter)(network, folder, classes)
        if network.tokenizer is not None:
            network.tokenizer.save_pretrained(folder)
    settings = network.settings
    one = network.n_classes == 2
    card = CARD.format(
        library="transformers" if whole else "peft",
        version=__version__,
        model=_code(network.source),
        classes=", ".join(f"`{_code(str(name))}`" for name in classes or range(network.n_classes)),
        output="one logit; above 0 is the second class" if one else "a logit each",
        tune="all weights" if settings.tune == "full" else f"LoRA of rank {settings.lora_rank}",
        about=about.strip(),
        **{name: getattr(settings, name) for name in ("epochs", "learning_rate", "max_length")},
    )
    write_atomic(folder / "README.md", lambda file: file.write(card.encode()))
    write_json(
        folder / FILE,
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "whet_version": __version__,
            "kind": "whole" if whole else "adapter",
            "model": network.source,
            "n_classes": network.n_classes,
            "classes": classes,
            "settings": asdict(settings),
            "history": history,
        },
    )


def load(folder: Path, device: Any) -> tuple[Network, Weights, list[dict[str, Any]]]:  # noqa: ANN401
    """Read what :func:`save` wrote.

    Raises
    ------
    WhetError
        If the folder holds something else, or is damaged.
    """
    about = read_json(folder / FILE)
    if about.get("format") != FORMAT or about.get("format_version") != FORMAT_VERSION:
        raise WhetError(
            f"{folder / FILE} has format {about.get('format')!r} {about.get('format_version')!r}, "
            f"this whet reads {FORMAT!r} {FORMAT_VERSION}: use the whet version that wrote it"
        )
    try:
        settings = Settings.from_dict(about["settings"])
        n_classes, history = int(about["n_classes"]), list(about["history"])
        kind, model = about["kind"], str(about["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise WhetError(f"{folder / FILE} is damaged ({error}): restore it") from error
    if kind == "adapter":
        network = Network(model, n_classes, settings, device)
        _load_adapter(network, folder)
    else:
        whole = replace(settings, tune="full", quantize=None)
        network = Network(str(folder), n_classes, whole, device)
    return network, network.snapshot(), history


def _save_whole(network: Network, folder: Path, classes: list[Any] | None) -> None:
    torch, transformers = require("torch", PURPOSE), require("transformers", PURPOSE)
    config = network.plain_config()
    names = [str(name) for name in classes or range(network.n_classes)]
    if network.n_classes == 2:
        names = names[1:]  # the one logit speaks for the second class
    config.id2label = dict(enumerate(names))
    config.label2id = {name: k for k, name in enumerate(names)}
    state = network.plain_state()
    kinds = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    config.dtype = torch.float32 if torch.float32 in kinds and len(kinds) == 1 else torch.bfloat16
    state = {
        name: tensor.to(config.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    with torch.device("meta"):
        shell = transformers.AutoModelForSequenceClassification.from_config(config)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).unlink(missing_ok=True)
    shell.save_pretrained(folder, state_dict=state)


def _save_adapter(network: Network, folder: Path, classes: list[Any] | None) -> None:
    del classes
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink(missing_ok=True)
    network.module.peft_config[ADAPTER].base_model_name_or_path = network.source
    network.module.save_pretrained(folder)


def _load_adapter(network: Network, folder: Path) -> None:
    peft = require("peft", PURPOSE)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(folder / "adapter_model.safetensors")
        result = peft.set_peft_model_state_dict(network.module, found)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise WhetError(
            f"the adapter in {folder} cannot be read ({str(error)[:200]}): restore it"
        ) from error
    if result.unexpected_keys or set(result.missing_keys) & set(network.trained):
        raise WhetError(f"the adapter in {folder} is of another model: restore its files")


def _code(text: str) -> str:
    """Return text that cannot end a code span or a line of the card."""
    return " ".join(text.replace("`", "'").split())
