"""A fine-tuned classifier on disk: a folder of transformers, and ``finetune.json`` beside it.

Merged, the folder holds a whole model: ``AutoModelForSequenceClassification.from_pretrained``
loads it, and needs nothing of whet. As an adapter it is a folder of peft. Weights are safetensors.
"""

from __future__ import annotations

from collections import Counter
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
- Code: {code}
- As a reward model of TRL: {reward}

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
    refusal = _refusal(network, whole)
    longest = min(settings.max_length, network.longest)
    card = CARD.format(
        library="transformers" if whole else "peft",
        version=__version__,
        model=_code(network.source),
        classes=", ".join(f"`{_code(str(name))}`" for name in classes or range(network.n_classes)),
        output="one logit; above 0 is the second class" if one else "a logit each",
        tune="all weights" if settings.tune == "full" else f"LoRA of rank {settings.lora_rank}",
        max_length=longest,
        code=(
            "the model's own was allowed to run (`trust_remote_code`); loading asks again"
            if settings.trust_remote_code
            else "none but that of transformers"
        ),
        reward=_reward(refusal, longest),
        about=about.strip(),
        **{name: getattr(settings, name) for name in ("epochs", "learning_rate")},
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
            "reward_model_id": {"usable": refusal is None, "why_not": refusal},
            "history": history,
        },
    )


def load(
    folder: Path,
    device: Any,  # noqa: ANN401
    trusted: bool = False,
) -> tuple[Network, Weights, list[dict[str, Any]]]:
    """Read what :func:`save` wrote.

    Parameters
    ----------
    folder : Path
    device : torch.device
    trusted : bool
        Whether code that the folder brings may run; what its settings say of it does not count.

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
        settings = Settings.from_dict(about["settings"] | {"trust_remote_code": trusted})
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


def refusal_of_id(folder: Path) -> str | None:
    """Return why TRL must not load a saved model as a reward by its id, or None where it may.

    Parameters
    ----------
    folder : Path
        What :func:`save` wrote.
    """
    record = read_json(folder / FILE).get("reward_model_id")
    if not isinstance(record, dict) or "why_not" not in record:
        return "because its finetune.json does not say that it can; save it again"
    return None if record["why_not"] is None else str(record["why_not"])


def _refusal(network: Network, whole: bool) -> str | None:
    """Compare what TRL does with a reward model's id with what whet does; None where it is equal.

    ``GRPOTrainer._calculate_rewards`` and ``RLOOTrainer`` of TRL 1.16 load the model with
    ``num_labels=1``, cut texts into tokens with ``add_special_tokens=False``, pad on the right and
    read ``logits[:, 0]``.
    """
    if not whole:
        return "because the folder holds an adapter alone"
    if network.settings.trust_remote_code:
        return "because it may bring code of its own"
    if network.n_classes != 2:
        return f"because it has {network.n_classes} logits and TRL reads one"
    tokenizer = network.tokenizer
    if tokenizer is None:
        return "because it has no tokenizer"
    plain = Counter(tokenizer("a", add_special_tokens=False)["input_ids"])
    added = Counter(tokenizer("a")["input_ids"]) - plain
    if added:
        names = " and ".join(tokenizer.convert_ids_to_tokens(list(added)))
        return f"because it was trained on texts with {names}, which TRL leaves out"
    return None


def _reward(refusal: str | None, longest: int) -> str:
    """Return what the card says of the model as a reward."""
    if refusal is not None:
        return (
            f"not by its id, {_code(refusal)}; "
            "use `whet.classify.reward.RewardFunction.from_pretrained`"
        )
    return (
        f"by its id, for texts of at most {longest} tokens, which TRL does not cut off; or "
        "`whet.classify.reward.RewardFunction.from_pretrained`"
    )


def _save_whole(network: Network, folder: Path, classes: list[Any] | None) -> None:
    torch = require("torch", PURPOSE)
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
        shell = type(network.plain)._from_config(config)
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
