"""Settings of ``whet refine``: defaults, then the recipe file, then the flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from whet.errors import WhetError, did_you_mean


class RefineRecipe(BaseModel):
    """Every setting of a refinement, with its default; a YAML recipe may hold any of them.

    Examples
    --------
    >>> RefineRecipe(input="corpus.csv", text="text", pseudo="llm").method
    'tsp'
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    input: str = Field(min_length=1)
    text: str = Field(min_length=1)
    pseudo: str = Field(min_length=1)
    pseudo_prob: str | None = None
    gold: str | None = None
    checked: str | None = None
    method: Literal["tsp", "silr", "uu", "pn"] = "tsp"
    encoder: str = "tfidf"
    theta: Literal["gold", "oracle", "released"] = "gold"
    rounds: int | None = Field(default=None, ge=1)
    folds: int | None = Field(default=None, ge=0)
    gold_budget: int = Field(default=100, ge=1)
    guard: Literal["safe", "mild", "off"] = "safe"
    seed: int = Field(default=0, ge=0)
    preset: Literal["silr-paper", "silr-released"] | None = None
    tune: Literal["lora", "full"] | None = None
    quantize: Literal["nf4", "none"] | None = None
    epochs: int | None = Field(default=None, ge=1)
    # Not strict: YAML takes 1e-4, without a point, for a string.
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False, strict=False)
    max_length: int | None = Field(default=None, ge=1)
    tokens_per_batch: int | None = Field(default=None, ge=1)
    trust_remote_code: bool | None = None
    out: str = Field(default="whet-run", min_length=1)


def default(name: str) -> str:
    """Return a setting's default as help text."""
    return str(RefineRecipe.model_fields[name].default)


def load_recipe(config: Path | None, flags: dict[str, Any]) -> RefineRecipe:
    """Merge a recipe file with flags; flags win.

    Parameters
    ----------
    config : Path, optional
        YAML file that holds any of the settings.
    flags : dict
        Settings from the command line; None means not given.

    Raises
    ------
    WhetError
        If the file cannot be read, a key is unknown, or a value is not valid.
    """
    content: Any = {}
    if config is not None:
        try:
            content = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        except FileNotFoundError as error:
            raise WhetError(f"the recipe {config} does not exist: name a YAML file") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise WhetError(f"the recipe {config} is not readable YAML ({reason})") from error
        if not isinstance(content, dict):
            raise WhetError(f"the recipe {config} holds no settings: write lines of key: value")
    known = list(RefineRecipe.model_fields)
    content = {str(key).replace("-", "_"): value for key, value in content.items()}
    for key in content:
        if key not in known:
            raise WhetError(f"the recipe {config} has the unknown key {key!r}" + _near(key, known))
    merged = content | {key: value for key, value in flags.items() if value is not None}
    if merged.get("preset") is not None:
        merged = _published(str(merged["preset"])) | merged
    try:
        return RefineRecipe.model_validate(merged)
    except ValidationError as error:
        raise WhetError(_sentence(error, config)) from error


def _published(preset: str) -> dict[str, Any]:
    """Return the settings of the refinement that a preset has; unknown ones are refused later."""
    from whet.finetune.presets import PRESETS

    chosen = PRESETS.get(preset)
    if chosen is None:
        return {}
    return {
        "method": chosen.method,
        "theta": chosen.theta,
        "rounds": chosen.rounds,
        "folds": 0,
        "guard": "off",
    }


def _near(key: str, known: list[str]) -> str:
    return did_you_mean(key, known) + ": correct or remove it"


def _sentence(error: ValidationError, config: Path | None) -> str:
    first = error.errors()[0]
    key = str(first["loc"][0])
    flag = "INPUT" if key == "input" else "--" + key.replace("_", "-")
    if first["type"] == "missing":
        also = " or in the recipe" if config is not None else ""
        return f"{flag} is missing: give it on the command line{also}"
    value = first["input"]
    if first["type"] == "literal_error":
        annotation = RefineRecipe.model_fields[key].annotation
        kinds = [annotation, *get_args(annotation)]  # of an optional one as well
        allowed = next(get_args(kind) for kind in kinds if get_origin(kind) is Literal)
        return f"{flag} = {value!r} is not known{did_you_mean(str(value), allowed)}"
    return f"{flag} = {value!r} is not valid ({first['msg'].lower()}): correct it"
