"""``whet push``: upload a classifier that ``whet refine`` wrote to a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def push(
    model: Annotated[Path, Parameter(help="Model folder, or the run folder that holds it.")],
    repo_id: Annotated[str, Parameter(help="NAME or OWNER/NAME; created if it does not exist.")],
    /,
    *,
    public: Annotated[
        bool, Parameter(help="Let everybody see it.", negative="", show_default=False)
    ] = False,
    revision: Annotated[
        str | None, Parameter(help="Branch; created if it does not exist.", show_default=False)
    ] = None,
) -> None:
    """Upload a classifier and its card to the Hugging Face hub, privately unless told otherwise.

    The token is that of HF_TOKEN or of 'hf auth login'.

        whet push run me/my-classifier
    """
    from whet.classify.tuned import tuned_folder
    from whet.cli import console, plain
    from whet.finetune.export import refusal_of_id
    from whet.hub import upload

    folder = _folder(model)
    address = upload(folder, repo_id, private=not public, revision=revision)
    console().print(plain(f"{folder} is at {address}"))
    if tuned_folder(folder) is not None and (refusal := refusal_of_id(folder)):
        console().print(plain(f"not a reward model of TRL by its id, {refusal}"))


def _folder(model: Path) -> Path:
    """Return the folder of a classifier that is whole, without loading a language model."""
    from whet.classify import model_folder
    from whet.classify.tuned import tuned_folder
    from whet.hub import check_model

    tuned = tuned_folder(model)
    if tuned is not None:
        check_model(tuned, str(tuned))
        return tuned
    model_folder.load(model)
    return model if (model / "config.json").is_file() else model / "model"
