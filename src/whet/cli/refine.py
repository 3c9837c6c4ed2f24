"""``whet refine``: the main job, from a table with noisy labels to a run folder."""

from __future__ import annotations

import platform
import resource
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from whet import __version__
from whet.cli._progress import ProgressReporter
from whet.cli._recipe import RefineRecipe, default, load_recipe
from whet.errors import WhetError, WhetWarning

if TYPE_CHECKING:
    import pyarrow as pa

    from whet.classify.refiner import LabelRefiner
    from whet.corpus import Corpus
    from whet.finetune.settings import Settings
    from whet.store import RunFolder


#: Flags of ``hf:MODEL`` that are settings of :class:`whet.finetune.settings.Settings` too.
_TUNING = (
    *("tune", "quantize", "epochs", "learning_rate", "max_length", "tokens_per_batch"),
    "trust_remote_code",
)
#: Rows that run.json names as the most doubtful.
SUSPECTS = 20


def _help(text: str, setting: str | None = None) -> Parameter:
    shown = text if setting is None else f"{text} [default: {default(setting)}]"
    return Parameter(help=shown, show_default=False)


def refine(
    input: Annotated[
        Path | None,
        _help("Table of texts: CSV, TSV, JSONL, Parquet, or a saved Hugging Face dataset."),
    ] = None,
    /,
    *,
    text: Annotated[str | None, _help("Column of texts.")] = None,
    pseudo: Annotated[
        str | None,
        _help(
            "Column of the annotator's labels, empty where it abstained; several annotators: "
            "their columns with commas."
        ),
    ] = None,
    pseudo_prob: Annotated[
        str | None,
        _help(
            "Column of the annotator's confidence in its labels, empty where unknown; several: "
            "as for --pseudo."
        ),
    ] = None,
    gold: Annotated[
        str | None, _help("Column of true labels, for a random sample of rows; else empty.")
    ] = None,
    checked: Annotated[
        str | None,
        _help(
            "Column of true labels for rows that are no random sample: they keep them, and count "
            "in no estimate."
        ),
    ] = None,
    method: Annotated[str | None, _help("tsp, silr, uu or pn.", "method")] = None,
    encoder: Annotated[
        str | None,
        _help(
            "tfidf; embed:FOLDER or embed:HUB_ID (extra [embed]); auto or auto:FOLDER for both; "
            "hf:FOLDER or hf:HUB_ID to fine-tune a model (extra [train]).",
            "encoder",
        ),
    ] = None,
    theta: Annotated[
        str | None,
        _help("Class ratios from gold; from oracle or released for experiments.", "theta"),
    ] = None,
    rounds: Annotated[
        int | None, _help("Rounds of fit and relabel. [default: 2 for tsp, else 5]")
    ] = None,
    folds: Annotated[
        int | None,
        _help("K scores held-out rows; 0 all rows, as published. [default: 5 for tsp, else 0]"),
    ] = None,
    gold_budget: Annotated[
        int | None, _help("Most gold rows to use; a random sample of more.", "gold_budget")
    ] = None,
    guard: Annotated[
        str | None,
        _help("Keep the annotator's labels without a gain on gold: safe, mild, off.", "guard"),
    ] = None,
    seed: Annotated[int | None, _help("Seed of samples and folds.", "seed")] = None,
    preset: Annotated[
        str | None,
        _help(
            "silr-paper or silr-released: all settings as published, for --encoder hf:MODEL; "
            "other flags win."
        ),
    ] = None,
    tune: Annotated[
        str | None,
        _help(
            "Of hf:MODEL train lora, the adapters, or full, all. [default: full for tsp, else lora]"
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        _help("nf4 keeps frozen weights in 4 bits (extra [quantization]); none does not."),
    ] = None,
    epochs: Annotated[
        int | None, _help("Of each fit of hf:MODEL. [default: 2 for tsp with full, else 3]")
    ] = None,
    learning_rate: Annotated[
        float | None,
        _help(
            "Of AdamW, at its highest, for hf:MODEL. [default: 5e-5 for tsp with full, else 1e-4]"
        ),
    ] = None,
    max_length: Annotated[
        int | None, _help("Most tokens of a text for hf:MODEL. [default: 512]")
    ] = None,
    tokens_per_batch: Annotated[
        int | None, _help("Most tokens of a step of hf:MODEL. [default: 16 texts]")
    ] = None,
    trust_remote_code: Annotated[
        bool | None,
        Parameter(
            help="Run the code that hf:MODEL brings; it can do all that you can.",
            negative="",
            show_default=False,
        ),
    ] = None,
    out: Annotated[str | None, _help("Output folder.", "out")] = None,
    resume: Annotated[
        bool, Parameter(help="Go on with an unfinished run in the output folder.", negative="")
    ] = False,
    config: Annotated[
        Path | None, _help("YAML recipe that holds any of these settings; flags win.")
    ] = None,
) -> None:
    """Refine an annotator's labels, and say honestly how good they are.

    Writes refined.parquet, a model folder and run.json, and prints a table to act on.

        whet refine corpus.csv --text text --pseudo llm --gold gold --out run
    """
    flags = {
        "input": None if input is None else str(input),
        "text": text,
        "pseudo": pseudo,
        "pseudo_prob": pseudo_prob,
        "gold": gold,
        "checked": checked,
        "method": method,
        "encoder": encoder,
        "theta": theta,
        "rounds": rounds,
        "folds": folds,
        "gold_budget": gold_budget,
        "guard": guard,
        "seed": seed,
        "preset": preset,
        "tune": tune,
        "quantize": quantize,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "max_length": max_length,
        "tokens_per_batch": tokens_per_batch,
        "trust_remote_code": trust_remote_code,
        "out": out,
    }
    run_recipe(load_recipe(config, flags), resume=resume)


def run_recipe(recipe: RefineRecipe, *, resume: bool) -> None:
    """Run a refinement into its folder and print the closing table.

    Parameters
    ----------
    recipe : RefineRecipe
    resume : bool
        Go on with an unfinished run of the same settings and input.

    Raises
    ------
    WhetError
        If anything the user can mend is wrong; no folder is left then.
    """
    from whet.cli._summary import print_summary
    from whet.corpus import read_corpus
    from whet.finetune.processes import launched_rank
    from whet.store import FollowedRun, RunFolder, read_json, sha256_of

    began, leads = time.perf_counter(), launched_rank() == 0
    if not leads and not recipe.encoder.startswith("hf:"):
        return  # there is nothing to share
    if not leads:
        warnings.simplefilter("ignore", WhetWarning)  # the first process shows them
    source, out = Path(recipe.input), Path(recipe.out)
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise WhetError(f"--out {out} lies inside the input folder {source}: choose another")
    corpus = read_corpus(
        source,
        text=recipe.text,
        pseudo=recipe.pseudo,
        gold=recipe.gold,
        pseudo_prob=recipe.pseudo_prob,
        checked=recipe.checked,
    )
    settings = recipe.model_dump(exclude={"out"}) | {
        "input_sha256": sha256_of(source),
        "whet_version": __version__,
    }
    run = RunFolder(out, settings, resume=resume) if leads else FollowedRun(out, settings)
    try:
        if run.complete:
            manifest = read_json(run.path / "run.json")
        else:
            manifest = _refine(recipe, corpus, run, time.perf_counter() - began)
    except Exception:
        run.discard_if_empty()
        raise
    finally:
        run.close()
    if leads:
        print_summary(manifest, run.path)


def _refine(
    recipe: RefineRecipe,
    corpus: Corpus,
    run: RunFolder,
    read_seconds: float,
) -> dict[str, Any]:
    from whet.classify.refiner import LabelRefiner
    from whet.store import FollowedRun

    refiner = LabelRefiner(
        recipe.method,
        encoder=recipe.encoder,
        theta=recipe.theta,
        rounds=recipe.rounds,
        folds=recipe.folds,
        gold_budget=recipe.gold_budget,
        guard=recipe.guard,
        random_state=recipe.seed,
        finetune=_finetune(recipe),
    )
    labels = corpus.pseudo_labels
    leads = not isinstance(run, FollowedRun)
    with ProgressReporter() if leads else nullcontext() as progress:
        refiner.fit_refine(
            corpus.texts,
            labels if isinstance(labels, dict) else {recipe.pseudo: labels},
            corpus.gold_labels,
            checked_labels=corpus.checked_labels,
            confidence=corpus.confidence,
            run=run,
            progress=progress,
        )
    began = time.perf_counter()
    refiner.save_pretrained(run.path / "model")
    run.save_result(_result(corpus, refiner, recipe.pseudo))
    seconds = {"read": read_seconds, **refiner.seconds_, "write": time.perf_counter() - began}
    manifest = _manifest(refiner, corpus, run.settings, seconds)
    if leads:
        manifest["seconds"]["report"] = _report(run.path, manifest)
    run.finish(manifest)
    return manifest


def _report(folder: Path, manifest: dict[str, Any]) -> float:
    """Write summary.json and report.html, and return the seconds that it took."""
    from whet.report.page import try_report
    from whet.report.summary import summarise

    began = time.perf_counter()
    try_report(folder, manifest, summarise, "the refined labels are")
    return round(time.perf_counter() - began, 3)


def _finetune(recipe: RefineRecipe) -> Settings | None:
    """Return how a model is fine-tuned: the preset's settings, then the flags."""
    flags = {name: getattr(recipe, name) for name in _TUNING if getattr(recipe, name) is not None}
    if not recipe.encoder.startswith("hf:"):
        given = [*(["preset"] if recipe.preset else []), *flags]
        if given:
            flag = "--" + given[0].replace("_", "-")
            raise WhetError(
                f"{flag} is for a model that is fine-tuned, and --encoder is {recipe.encoder}: "
                "name one with --encoder hf:MODEL, or leave it out"
            )
        return None
    from dataclasses import replace

    from whet.classify.tuned_tsp import STUDENT
    from whet.finetune.presets import PRESETS
    from whet.finetune.settings import Settings

    adapters = recipe.tune == "lora" or recipe.quantize == "nf4"
    chosen = STUDENT if recipe.method == "tsp" and not adapters else Settings()
    if recipe.preset:
        chosen = PRESETS[recipe.preset].settings
    if flags.get("quantize") == "none":
        flags["quantize"] = None
    return replace(chosen, **flags)


def _result(corpus: Corpus, refiner: LabelRefiner, pseudo: str) -> pa.Table:
    """All input columns, then what was found; see docs/run-folder.md."""
    import pyarrow as pa

    from whet.corpus import annotator_column

    table = corpus.table.replace_schema_metadata(None)
    if pseudo != "pseudo_label":
        several = isinstance(corpus.pseudo_labels, dict)
        labels = pa.array(refiner.pseudo_labels_) if several else table[pseudo]
        table = table.append_column(annotator_column(table), labels)
    return (
        table.append_column("refined_label", pa.array(refiner.labels_.tolist()))
        .append_column("refined_prob", pa.array(refiner.label_proba_))
        .append_column("changed", pa.array(refiner.changed_))
        .append_column("suspicion", pa.array(refiner.suspicion_))
        .append_column("reason", pa.array(refiner.reason_))
    )


def _manifest(
    refiner: LabelRefiner, corpus: Corpus, settings: dict[str, Any], seconds: dict[str, float]
) -> dict[str, Any]:
    from whet.cli.env import versions

    missing = sum(1 for reason in refiner.reason_ if reason.startswith("annotator abstained"))
    return {
        "settings": settings,
        "versions": versions(),
        "platform": platform.platform(),
        "input": {"path": corpus.source, "sha256": settings["input_sha256"]},
        "rows": {
            "total": len(corpus.texts),
            "changed": int(refiner.changed_.sum()),
            "filled": missing,
            "by_class": refiner.class_counts_,
        },
        "classes": refiner.classes_.tolist(),
        "verdict": refiner.verdict_,
        "kept_annotator": refiner.kept_annotator_,
        "margin": refiner.margin_,
        "estimate": {name: e.as_dict() for name, e in refiner.estimate_.items()},
        "theta": refiner.theta_,
        "theta_interval": refiner.theta_interval_,
        "prior": refiner.prior_,
        "rounds": refiner.history_,
        "halted": refiner.halted_,
        "warnings": refiner.warnings_,
        "gold": refiner.gold_,
        "suspects": _suspects(refiner),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "peak_memory_mib": _peak_memory_mib(),
    }


def _suspects(refiner: LabelRefiner) -> list[dict[str, Any]]:
    """Return the rows whose annotator's label is most doubtful: what to look at first."""
    order = refiner.suspicion_.argsort(kind="stable")[::-1][:SUSPECTS]
    best = refiner.classes_[refiner.proba_.argmax(axis=1)].tolist()
    return [
        {
            "row": row,
            "pseudo_label": refiner.pseudo_labels_[row],
            "instead": best[row],
            "suspicion": round(float(refiner.suspicion_[row]), 3),
        }
        for row in order.tolist()
        if refiner.suspicion_[row] > 0
    ]


def _peak_memory_mib() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1 << 20) if sys.platform == "darwin" else peak // 1024
