"""Causal language models: what is loaded, what of it is trained, and how it is saved.

No code of a model folder is run, and only safetensors weights are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from whet.errors import WhetError
from whet.extras import require
from whet.finetune.model import load_tokenizer as read_tokenizer
from whet.finetune.model import quiet, uses_bf16
from whet.finetune.settings import Settings
from whet.hub import find_folder, reason
from whet.posttrain.settings import DpoSettings, OnlineSettings, TrainSettings

PURPOSE = "post-training"
#: What :mod:`whet.posttrain.trainers` writes last, and the folder that is there until then.
MANIFEST, CHECKPOINTS = "training.json", "checkpoints"


class TrainingFailed(WhetError):
    """Training led to numbers that are none; from a checkpoint it would again.

    Examples
    --------
    >>> raise TrainingFailed("the loss is not a number: lower the learning rate")
    Traceback (most recent call last):
    ...
    whet.posttrain.models.TrainingFailed: the loss is not a number: lower the learning rate
    """


def pick_device(device: str | None = None) -> Any:  # noqa: ANN401
    """Return a torch device: the one named, else a CUDA device where there is one, else the CPU."""
    torch = require("torch", PURPOSE)
    return torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))


def computes_in_bf16(precision: str, device: Any) -> bool:  # noqa: ANN401
    """Whether a precision of :class:`~whet.posttrain.settings.TrainSettings` means bf16 there."""
    return uses_bf16(Settings(precision=precision), device)


def find_model(model: str) -> Path:
    """Return the folder of a model; a hub id is downloaded.

    Raises
    ------
    WhetError
        If it is no model, brings code, has no safetensors weights, or its training is unfinished.
    """
    given = Path(model).expanduser()
    if (given / CHECKPOINTS).is_dir() and not (given / MANIFEST).is_file():
        raise WhetError(
            f"the training of the model in {model} is unfinished: run it again with the same "
            "settings, which finishes it"
        )
    return find_folder(model, PURPOSE)


def load_tokenizer(model: str) -> Any:  # noqa: ANN401
    """Return a model's tokenizer with an end mark and a padding token.

    Parameters
    ----------
    model : str
        Folder or hub id.

    Raises
    ------
    WhetError
        If there is no tokenizer, or neither it nor the model knows an end mark.
    """
    folder = find_model(model)
    tokenizer = read_tokenizer(folder)
    if tokenizer is None:
        raise WhetError(f"the model {model!r} has no tokenizer: name a folder that has its files")
    if tokenizer.eos_token is None:
        ends = end_tokens(read_config(folder, model), tokenizer)
        if not ends:
            raise WhetError(
                f"neither the tokenizer nor the configuration of {model!r} names an end mark "
                "(eos_token), without which no completion ends: name one"
            )
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def end_tokens(config: Any, tokenizer: Any) -> list[int]:  # noqa: ANN401
    """Return the tokens that end a completion: the model's and the tokenizer's."""
    found = getattr(config, "eos_token_id", None)
    if found is None and hasattr(config, "get_text_config"):
        found = config.get_text_config().eos_token_id
    ends = list(found) if isinstance(found, list | tuple) else [found]
    return sorted({int(k) for k in [*ends, tokenizer.eos_token_id] if k is not None})


def load_causal(
    model: str,
    settings: TrainSettings | None = None,
    device: Any = None,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Load a causal language model.

    Parameters
    ----------
    model : str
        Folder or hub id.
    settings : TrainSettings, optional
        How it will be trained: quantisation and numbers follow. None: to generate and score, in
        bf16 on a CUDA device that has it, else fp32.
    device : torch.device or str, optional

    Returns
    -------
    module of transformers
        In evaluation mode.

    Raises
    ------
    WhetError
        If it cannot be loaded.
    """
    torch, transformers = require("torch", PURPOSE), require("transformers", PURPOSE)
    folder = find_model(model)
    device = device if isinstance(device, torch.device) else pick_device(device)
    half = computes_in_bf16("auto" if settings is None else settings.precision, device)
    if settings is not None and settings.tune == "full":
        half = False  # bf16 has too few digits for small updates; computing in it is another matter
    config = read_config(folder, model)
    if isinstance(settings, DpoSettings | OnlineSettings):
        _drop_nothing(config)
    options: dict[str, Any] = {"dtype": torch.bfloat16 if half else torch.float32}
    if settings is not None and settings.quantize == "nf4":
        require("bitsandbytes", "quantize = 'nf4'")
        _check_quantizable(config, model)
        options["device_map"] = {"": device}
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    try:
        with quiet():
            module, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # whatever a damaged or unknown model makes transformers raise
        raise _unloadable(model, error) from error
    if report["missing_keys"]:  # transformers draws them at random, with a warning
        raise WhetError(
            f"the checkpoint of {model!r} lacks {sorted(report['missing_keys'])[0]} and so is none "
            "of a causal language model: name one, or restore its safetensors files"
        )
    for layer in module.modules():
        # On a CPU bitsandbytes would repack the weights when they first score, for good, in a form
        # that cannot be trained and that only some shapes have.
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    if "quantization_config" not in options:
        module = module.to(device)
    return module.eval()


def _check_quantizable(config: Any, model: str) -> None:  # noqa: ANN401
    """Raise ``WhetError`` where 4-bit layers would come back transposed, as GPT-2's do."""
    torch, transformers = require("torch", PURPOSE), require("transformers", PURPOSE)
    with torch.device("meta"):
        shell = transformers.AutoModelForCausalLM.from_config(config)
    if any(isinstance(layer, transformers.pytorch_utils.Conv1D) for layer in shell.modules()):
        raise WhetError(
            f"quantize = 'nf4' with the model {model!r}, whose layers are kept transposed: leave "
            "its weights whole"
        )


def _drop_nothing(config: Any) -> None:  # noqa: ANN401
    """Switch dropout off, without which a model is not its own reference.

    TRL silences modules of dropout, but attention takes its dropout from the configuration.
    """
    text = config.get_text_config()
    for name, value in text.to_dict().items():
        if isinstance(value, float) and ("dropout" in name or "pdrop" in name):
            setattr(text, name, 0.0)


def save_merged(
    module: Any,  # noqa: ANN401
    config: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    folder: Path,
) -> None:
    """Write a trained model as a plain folder, adapters merged and 4-bit weights whole.

    Parameters
    ----------
    module : module of transformers or peft
    config : configuration of transformers
        Of the model that training began with; trainers change the module's.
    tokenizer : tokenizer of transformers
    folder : Path
        Created if absent.

    Raises
    ------
    TrainingFailed
        If a weight is not a number.
    """
    torch, transformers = require("torch", PURPOSE), require("transformers", PURPOSE)
    from whet.finetune.model import _merged

    plain = module.get_base_model() if hasattr(module, "peft_config") else module
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in _merged(plain)}
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise TrainingFailed(
                f"the weight {name} is not a number after training: lower the learning rate"
            )
    values = config.to_dict()
    values.pop("quantization_config", None)
    config = type(config).from_dict(values)
    kinds = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    config.dtype = torch.float32 if kinds == {torch.float32} else torch.bfloat16
    state = {
        name: tensor.to(config.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    with quiet():
        with torch.device("meta"):
            shell = transformers.AutoModelForCausalLM.from_config(config)
        shell.generation_config = plain.generation_config
        folder.mkdir(parents=True, exist_ok=True)
        shell.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)


def read_config(folder: Path, model: str) -> Any:  # noqa: ANN401
    """Return the configuration in a model's folder; ``model`` is what errors call it."""
    transformers = require("transformers", PURPOSE)
    try:
        return transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # as above
        raise _unloadable(model, error) from error


def _unloadable(model: str, error: Exception) -> WhetError:
    return WhetError(
        f"the model {model!r} cannot be loaded ({reason(error)}): name a folder that holds a "
        "causal language model of transformers with safetensors weights"
    )
