"""Language models with a classification head: what is loaded, what of it is trained, what is saved.

A folder or hub id of any architecture that transformers can classify sequences with, causal models
included. Only safetensors weights are read, and no code of a model folder is run unless the setting
``trust_remote_code`` says so.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.errors import WhetError
from whet.extras import require
from whet.finetune.settings import Settings
from whet.hub import find_folder

if TYPE_CHECKING:
    from torch import Tensor

PURPOSE = "fine-tuning"
#: Name of the attention that reads no mask; see :func:`_needs_mask`.
PLAIN_ATTENTION = "whet_causal"
#: Standard deviation of a new head where the model's configuration names none.
HEAD_STD = 0.02
ADAPTER = "default"

Weights = dict[str, Any]


class Network:
    """A language model with one logit for two classes, K for K, and what of it is trained.

    Parameters
    ----------
    model : str
        Folder or hub id; a hub id is downloaded.
    n_classes : int
    settings : Settings
    device : torch.device

    Attributes
    ----------
    module : torch module
        The model, with adapters where they are trained.
    trained : dict of str to parameter
        What training changes.
    tokenizer : tokenizer of transformers, or None
    pad : int
    longest : int
        Most tokens that the model reads.

    Examples
    --------
    >>> import tempfile, torch, transformers
    >>> folder = tempfile.mkdtemp()
    >>> config = transformers.LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8,
    ...     num_hidden_layers=1, num_attention_heads=2, pad_token_id=0)
    >>> transformers.LlamaForCausalLM(config).save_pretrained(folder)
    >>> network = Network(folder, 2, Settings(lora_rank=2), torch.device("cpu"))
    >>> sorted({name.split(".")[-3] for name in network.trained})[:3]
    ['lora_A', 'lora_B', 'modules_to_save']
    >>> network.logits(torch.tensor([[3, 4]]), None).shape
    torch.Size([1, 1])
    """

    def __init__(self, model: str, n_classes: int, settings: Settings, device: Any) -> None:  # noqa: ANN401
        torch = require("torch", PURPOSE)
        self.source, self.n_classes, self.settings, self.device = model, n_classes, settings, device
        self.folder = find_folder(model, PURPOSE, settings.trust_remote_code)
        self.tokenizer = load_tokenizer(self.folder, settings.trust_remote_code)
        self.half = uses_bf16(settings, device)
        with _unseen(device):
            module, fresh = self._load()
        heads = _heads(module, fresh)
        self._std = float(getattr(module.config, "initializer_range", None) or HEAD_STD)
        self.pad = int(module.config.get_text_config().pad_token_id)
        self.longest = _longest(module.config, self.tokenizer)
        self.masked = _needs_mask(module)
        if not self.masked:
            _read_no_mask(module)
        if settings.tune == "lora":
            module = self._adapt(module, heads)
        else:
            module.requires_grad_(True)
        if settings.gradient_checkpointing:
            with quiet():
                module.gradient_checkpointing_enable({"use_reentrant": False})
        self.module = module
        self.trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        for parameter in self.trained.values():
            parameter.data = parameter.data.to(torch.float32)
        self._fresh = {
            name
            for name in self.trained
            if settings.tune == "lora" or any(name.startswith(f"{head}.") for head in heads)
        }
        self._first = {
            name: parameter.detach().cpu().clone()
            for name, parameter in self.trained.items()
            if name not in self._fresh
        }
        self.forward = torch.compile(module, dynamic=True) if settings.compile else module
        self.holds: object = None

    def logits(self, ids: Tensor, mask: Tensor | None, forward: Any = None) -> Tensor:  # noqa: ANN401
        """Return float32 logits of shape (b, 1) for two classes, else (b, K).

        Parameters
        ----------
        ids, mask : tensors of shape (b, width)
            The mask may be None where ``masked`` is False.
        forward : callable, optional
            A wrapped module to call instead of ``module``.
        """
        torch = require("torch", PURPOSE)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            run = self.forward if forward is None else forward
            out = run(input_ids=ids, attention_mask=mask)
        logits: Tensor = out.logits.float()
        return logits

    def mean(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mean of the last hidden states over the tokens of each text.

        Parameters
        ----------
        ids, mask : tensors of shape (b, width)
            As for :meth:`logits`; without a mask, what is not ``pad`` counts.

        Returns
        -------
        float32 tensor of shape (b, d)
        """
        torch = require("torch", PURPOSE)
        whole = self.module.get_base_model() if self.settings.tune == "lora" else self.module
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            states = whole.base_model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        counts = (ids != self.pad if mask is None else mask).float()[:, :, None]
        means: Tensor = (states * counts).sum(dim=1) / counts.sum(dim=1).clamp_min(1.0)
        return means

    def reset(self, seed: int) -> None:
        """Make head and adapters anew from a seed, and all other weights as they were loaded.

        The numbers are drawn on the CPU, so that every device starts from the same ones.
        """
        torch = require("torch", PURPOSE)
        self.holds = None
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.trained.items():
                if name not in self._fresh:
                    parameter.copy_(self._first[name])
                    continue
                new = torch.zeros(parameter.shape)
                if ".lora_A." in name:  # as torch's Linear and peft have it
                    new.uniform_(-1, 1, generator=rng).mul_(new[0].numel() ** -0.5)
                elif new.ndim > 1 and ".lora_B." not in name:
                    new.normal_(0, self._std, generator=rng)
                elif new.ndim == 1 and name.endswith("weight"):
                    new.fill_(1.0)  # of a norm
                parameter.copy_(new)

    def snapshot(self) -> Weights:
        """Return a copy of the trained weights on the CPU."""
        return {name: p.detach().cpu().clone() for name, p in self.trained.items()}

    def restore(self, weights: Weights) -> None:
        """Set the trained weights.

        Raises
        ------
        WhetError
            If they are of another model.
        """
        torch = require("torch", PURPOSE)
        if weights is self.holds:
            return
        shapes = {name: tuple(p.shape) for name, p in self.trained.items()}
        if shapes != {name: tuple(w.shape) for name, w in weights.items()}:
            raise WhetError(
                f"the weights do not fit the model {self.source!r} with {self.n_classes} classes: "
                "load the model and settings that they were trained with"
            )
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(weights[name])
        self.holds = weights

    @property
    def plain(self) -> Any:  # noqa: ANN401
        """The module without the wrapper of adapters."""
        return self.module.get_base_model() if self.settings.tune == "lora" else self.module

    def plain_state(self) -> Weights:
        """Return the weights of the model as it was before adapters, with adapters merged in."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in _merged(self.plain)}

    def plain_config(self) -> Any:  # noqa: ANN401
        """Return the configuration of the model without adapters and quantisation."""
        values = self.module.config.to_dict()
        values.pop("quantization_config", None)
        config = type(self.module.config).from_dict(values)
        config.architectures = [type(self.plain).__name__]
        config.use_cache = True
        return config

    def _load(self) -> tuple[Any, set[str]]:
        """Return the model and the names of the weights that its checkpoint lacks."""
        torch, transformers = require("torch", PURPOSE), require("transformers", PURPOSE)
        require("accelerate", PURPOSE)
        frozen_half = self.half and self.settings.tune == "lora"
        options: dict[str, Any] = {"dtype": torch.bfloat16 if frozen_half else torch.float32}
        common = {
            "trust_remote_code": self.settings.trust_remote_code,
            "local_files_only": True,
        }
        outputs = 1 if self.n_classes == 2 else self.n_classes
        try:
            config = transformers.AutoConfig.from_pretrained(
                self.folder, num_labels=outputs, **common
            )
            self._set_pad(config)
            config.use_cache = False
            if self.settings.quantize == "nf4":
                require("bitsandbytes", "quantize = 'nf4'")
                options["quantization_config"] = self._four_bits(config)
                options["device_map"] = {"": self.device}
            module, report = transformers.AutoModelForSequenceClassification.from_pretrained(
                self.folder,
                config=config,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **common,
                **options,
            )
        except WhetError:
            raise
        except Exception as error:  # whatever a damaged or unknown model makes transformers raise
            raise _unloadable(self.source, error) from error
        if self.settings.quantize is None:
            module = module.to(self.device)
        for layer in module.modules():
            # On a CPU bitsandbytes would repack the weights when they first score, for good, in a
            # form that cannot be trained and that only some shapes have.
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                layer.support_avx512bf16_for_cpu = False
        mismatched = {entry[0] for entry in report["mismatched_keys"]}
        return module, set(report["missing_keys"]) | mismatched

    def _set_pad(self, config: Any) -> None:  # noqa: ANN401
        """Give configuration and tokenizer one padding token: the model's, else its end mark."""
        text = config.get_text_config()
        tokenizer = self.tokenizer
        end = getattr(text, "eos_token_id", None)  # a model of its own code may have none
        known = [getattr(part, "pad_token_id", None) for part in (tokenizer, text, config)]
        ends = end if isinstance(end, list) else [end]
        known += [getattr(tokenizer, "eos_token_id", None), *ends, 0]
        pad = next(int(k) for k in known if k is not None and 0 <= int(k) < text.vocab_size)
        config.pad_token_id = text.pad_token_id = pad
        if tokenizer is not None and tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)

    def _four_bits(self, config: Any) -> Any:  # noqa: ANN401
        """Return what keeps all linear layers but the head in 4 bits."""
        torch, transformers = require("torch", PURPOSE), require("transformers", PURPOSE)
        with torch.device("meta"):
            shell = transformers.AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=self.settings.trust_remote_code
            )
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=sorted(_heads(shell, set())),
        )

    def _adapt(self, module: Any, heads: set[str]) -> Any:  # noqa: ANN401
        """Freeze the model; put adapters beside its linear layers, and copies in for the head."""
        targets, transposed = _linear_layers(module, heads)
        module.requires_grad_(False)
        with _unseen(self.device):
            peft = require("peft", "tune = 'lora'")
            config = peft.LoraConfig(
                task_type="SEQ_CLS",
                r=self.settings.lora_rank,
                lora_alpha=self.settings.lora_alpha,
                lora_dropout=self.settings.lora_dropout,
                bias="none",
                target_modules=targets,
                modules_to_save=sorted(heads),
                fan_in_fan_out=transposed,
            )
            adapted = peft.get_peft_model(module, config)
        for layer in adapted.modules():
            if hasattr(layer, "lora_A"):
                _fuse(layer)
        return adapted


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and peft from reporting what is as it should be: a head is always new."""
    theirs = require("transformers", PURPOSE).utils.logging
    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    four_bits = logging.getLogger("bitsandbytes")  # peft imports it, and it warns of lacking speed
    four_bits_level = four_bits.level
    four_bits.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        four_bits.setLevel(four_bits_level)
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()


@contextmanager
def _unseen(device: Any) -> Iterator[None]:  # noqa: ANN401
    """Be quiet, and leave the state of the random generators as it was."""
    torch = require("torch", PURPOSE)
    devices = [device] if device.type == "cuda" else []
    with quiet(), torch.random.fork_rng(devices=devices):
        yield


def load_tokenizer(folder: Path, trusted: bool = False) -> Any:  # noqa: ANN401
    """Return the tokenizer of a model folder, or None where it has none."""
    transformers = require("transformers", PURPOSE)
    names = ("tokenizer*.json", "vocab*", "*.model", "spiece*")
    if not any(any(folder.glob(name)) for name in names):
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trusted, local_files_only=True
        )
    except Exception as error:  # whatever a damaged tokenizer makes transformers raise
        said = " ".join(str(error).split())[:200]
        raise WhetError(
            f"the tokenizer in {folder} cannot be loaded ({type(error).__name__}: {said}): "
            "restore its files"
        ) from error


def longest_of(folder: Path, model: str, tokenizer: Any, trusted: bool = False) -> int:  # noqa: ANN401
    """Return the most tokens that a model reads, before it is loaded."""
    transformers = require("transformers", PURPOSE)
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=trusted, local_files_only=True
        )
    except Exception as error:  # whatever a damaged or unknown model makes transformers raise
        raise _unloadable(model, error) from error
    return _longest(config, tokenizer)


def _unloadable(model: str, error: Exception) -> WhetError:
    said = " ".join(str(error).split())[:200]
    return WhetError(
        f"the model {model!r} cannot be loaded ({type(error).__name__}: {said}): name a model "
        "whose architecture transformers can classify sequences with"
    )


def uses_bf16(settings: Settings, device: Any) -> bool:  # noqa: ANN401
    """Whether to compute in bf16: when asked to, by default where a CUDA device has it."""
    torch = require("torch", PURPOSE)
    if settings.precision == "auto":
        return bool(device.type == "cuda" and torch.cuda.is_bf16_supported())
    return settings.precision == "bf16"


def _heads(module: Any, fresh: set[str]) -> set[str]:  # noqa: ANN401
    """Return the modules outside the language model, and those that the checkpoint lacks."""
    inside = module.base_model_prefix + "."
    outside = {n.split(".")[0] for n, _ in module.named_parameters() if not n.startswith(inside)}
    modules = dict(module.named_modules())
    lacking = {name.rpartition(".")[0] for name in fresh if name.startswith(inside)}
    # A layer of a deep stack that is lacking means that the checkpoint is of another model.
    if any(part.isdigit() for name in lacking for part in name.split(".")):
        raise WhetError(
            "the checkpoint lacks weights of the model's layers: restore its safetensors files"
        )
    return outside | {name for name in lacking if name in modules}


def _linear_layers(module: Any, heads: set[str]) -> tuple[list[str], bool]:  # noqa: ANN401
    """Return the linear layers of attention and MLP, and whether they are stored transposed."""
    torch = require("torch", PURPOSE)
    from transformers.pytorch_utils import Conv1D

    inside = module.base_model_prefix + "."
    found = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear | Conv1D)
        and name.startswith(inside)
        and not any(name == head or name.startswith(f"{head}.") for head in heads)
    }
    if not found:
        raise WhetError(
            "the model has no linear layers that adapters could stand beside: use tune = 'full'"
        )
    return sorted(found), any(isinstance(layer, Conv1D) for layer in found.values())


def _fuse(layer: Any) -> None:  # noqa: ANN401
    """Give an adapted layer a forward pass that adds its adapter inside a matrix product.

    It computes what peft's does, ``base(x) + scaling * B A dropout(x)``. But peft scales and adds
    in passes of their own over outputs that are large beside the adapter; and it converts the
    inputs of every layer to float32, which autocast converts back.
    """
    layer.forward = partial(_fused, layer)  # a copy of the layer gets one of its own


def _fused(layer: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    rows = x.reshape(-1, x.shape[-1])
    out = layer.base_layer(rows)  # in two dimensions, so that it can be added to in place
    inner = layer.lora_A[ADAPTER](layer.lora_dropout[ADAPTER](rows)).to(out.dtype)
    up = layer.lora_B[ADAPTER].weight.t().to(out.dtype)
    out = out.addmm_(inner, up, alpha=layer.scaling[ADAPTER])
    added: Tensor = out.view(*x.shape[:-1], out.shape[-1])
    return added


def _needs_mask(module: Any) -> bool:  # noqa: ANN401
    """Whether tokens after a text's end would change its logits if nothing masked them.

    Padding is on the right. Where every layer looks only back, no token of a text sees it, and the
    head reads the last token that is not padding: no mask is needed. Without one attention runs in
    its fastest form, and transformers does not look at the mask's values, for which a GPU would
    have to finish all work first.
    """
    config = module.config.get_text_config()
    if getattr(config, "sliding_window", None) or not getattr(config, "is_causal", True):
        return True
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return True
    if config._attn_implementation != "sdpa":
        return True
    looks = [layer.is_causal for layer in module.modules() if hasattr(layer, "is_causal")]
    return not looks or not all(looks)


def _read_no_mask(module: Any) -> None:  # noqa: ANN401
    """Use torch's attention under a name for which transformers makes no mask at all."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(PLAIN_ATTENTION, sdpa_attention_forward)
    module.set_attn_implementation(PLAIN_ATTENTION)


def _longest(config: Any, tokenizer: Any) -> int:  # noqa: ANN401
    """Return the most tokens that positions and tokenizer allow."""
    limits = [
        getattr(config.get_text_config(), "max_position_embeddings", None),
        getattr(config.get_text_config(), "n_positions", None),
        getattr(tokenizer, "model_max_length", None),
    ]
    return int(min([k for k in limits if k is not None and k > 0], default=np.iinfo(np.int64).max))


def _merged(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:  # noqa: ANN401
    """Yield the weights of a module as they would be called without adapters."""
    if hasattr(module, "lora_A"):
        base = module.base_layer
        weight = _full_precision(base.weight)
        delta = module.get_delta_weight(ADAPTER) if ADAPTER in module.lora_A else 0.0
        yield f"{prefix}weight", (weight.float() + delta).to(weight.dtype)
        if base.bias is not None:
            yield f"{prefix}bias", base.bias
    elif hasattr(module, "modules_to_save"):
        yield from _merged(module.modules_to_save[ADAPTER], prefix)
    else:
        for name, tensor in module.named_parameters(recurse=False):
            yield f"{prefix}{name}", _full_precision(tensor)
        persistent = module.state_dict().keys()
        for name, tensor in module.named_buffers(recurse=False):
            if name in persistent:
                yield f"{prefix}{name}", tensor
        for name, child in module.named_children():
            yield from _merged(child, f"{prefix}{name}.")


def _full_precision(weight: Tensor) -> Tensor:
    if not hasattr(weight, "quant_state"):
        return weight
    from peft.utils.integrations import dequantize_bnb_weight

    whole: Tensor = dequantize_bnb_weight(weight)  # type: ignore[arg-type]
    return whole
