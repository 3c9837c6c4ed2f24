"""Completions of prompts, and the log-probabilities of completions, from a model in this process.

Rows are sorted by length and share batches; a batch that is done is on disk before the next one
starts.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from whet import __version__
from whet.errors import WhetError
from whet.extras import require
from whet.finetune.model import longest_of
from whet.hub import fingerprint
from whet.posttrain.examples import ROW, check_examples, digest, is_conversational
from whet.posttrain.models import (
    PURPOSE,
    find_model,
    load_causal,
    load_tokenizer,
)
from whet.posttrain.settings import GenerateSettings
from whet.posttrain.speaker import Speaker, takes, uniforms
from whet.posttrain.tokens import Encoded, encode, encode_prompts
from whet.rounds import Progress
from whet.store import RunFolder, write_json, write_parquet

RESULT, MANIFEST, PARTS = "completions.parquet", "generation.json", "batches"
#: Most entries of one table of log-probabilities.
LOGIT_CELLS = 1 << 27


def generate(
    model: str,
    table: pa.Table,
    out: Path,
    settings: GenerateSettings,
    *,
    progress: Progress | None = None,
) -> pa.Table:
    """Let a model complete prompts.

    Parameters
    ----------
    model : str
        Folder or hub id of a causal language model.
    table : pyarrow.Table
        With ``prompt``, text or messages; ``row`` tells rows apart, see
        :mod:`whet.posttrain.examples`.
    out : Path
        Folder; with the same model, prompts and settings a finished one is read, and an unfinished
        one is finished.
    settings : GenerateSettings
    progress : callable, optional
        Called with ("generate", completions done, completions in all).

    Returns
    -------
    pyarrow.Table
        A row for each prompt and sample, in the order of the prompts: ``row``, ``sample`` (int,
        from 0), ``prompt``, ``completion`` (text, or a list with the assistant's message),
        ``finished`` (whether the model ended it; else ``max_new_tokens`` did) and ``tokens`` (list
        of int, as they were chosen, the end mark included: cut again, a text may give others).

    Raises
    ------
    WhetError
        If model, prompts or folder cannot be used, or a prompt leaves no room for a completion.
    """
    began = time.perf_counter()
    table, out = check_examples(table, ["prompt"]), Path(out)
    folder = find_model(model)
    about = {
        "weights": fingerprint(folder),
        "data_sha256": digest(table.select([ROW, "prompt"])),
        **asdict(settings),
    }
    held = RunFolder(out, about, resume=True)
    try:
        if not (out / MANIFEST).is_file():
            work = _Work(folder, table, settings)
            held.open()
            work.run(out / PARTS, progress)
            write_parquet(out / RESULT, work.gather(out / PARTS))
            account = {
                "whet_version": __version__,
                "model": model,
                **about,
                "completions": work.total,
                "new_tokens": work.new_tokens,
                "seconds": round(time.perf_counter() - began, 3),
            }
            write_json(out / MANIFEST, account)
            shutil.rmtree(out / PARTS)
        return pq.read_table(out / RESULT)
    finally:
        held.close()


@dataclass
class _Item:
    """A completion to be made: of which prompt, which sample."""

    place: int
    sample: int
    ids: list[int]


class _Work:
    """All completions of a table: cut into batches, done one after the other."""

    def __init__(self, folder: Path, table: pa.Table, settings: GenerateSettings) -> None:
        self.model, self.table, self.settings = str(folder), table, settings
        self.tokenizer = load_tokenizer(self.model)
        self.longest = longest_of(folder, self.model, self.tokenizer)
        self.rows = table[ROW].to_numpy()
        self.prompts = encode_prompts(self.tokenizer, table["prompt"].to_pylist())
        for place, ids in enumerate(self.prompts):
            if not 0 < len(ids) < self.longest:
                raise WhetError(
                    f"the prompt of row {place} has {len(ids):,} tokens, and the model reads "
                    f"{self.longest:,}: remove the row"
                )
        self.total = table.num_rows * settings.samples
        self.new_tokens = 0
        self.speaker: Speaker | None = None

    def run(self, parts: Path, progress: Progress | None) -> None:
        """Make what is not there yet."""
        parts.mkdir(exist_ok=True)
        done = 0
        for number, batch in enumerate(self._batches()):
            path = parts / f"{number:06d}.parquet"
            if not path.is_file():
                write_parquet(path, self._complete(batch))
            done += len(batch)
            if progress is not None:
                progress("generate", done, self.total)

    def gather(self, parts: Path) -> pa.Table:
        """Return all parts in the order of the prompts."""
        whole = pa.concat_tables([pq.read_table(path) for path in sorted(parts.iterdir())])
        whole = whole.sort_by([("place", "ascending"), ("sample", "ascending")])
        self.new_tokens = len(whole["tokens"].combine_chunks().values)
        prompts = self.table["prompt"].take(whole["place"])
        said = whole["completion"]
        if is_conversational(self.table):
            talks = [[{"role": "assistant", "content": text}] for text in said.to_pylist()]
            said = pa.array(talks)
        columns = {ROW: whole[ROW], "sample": whole["sample"], "prompt": prompts}
        columns |= {"completion": said, "finished": whole["finished"], "tokens": whole["tokens"]}
        return pa.table(columns)

    def _batches(self) -> Iterator[list[_Item]]:
        """Yield batches of prompts of about one length, longest first."""
        settings = self.settings
        places = np.argsort([-len(ids) for ids in self.prompts], kind="stable")
        items = [
            _Item(int(place), sample, self.prompts[place])
            for place in places
            for sample in range(settings.samples)
        ]
        start = 0
        while start < len(items):
            width = len(items[start].ids) + settings.max_new_tokens
            size = max(1, settings.tokens_per_batch // width)
            if width > self.longest:
                size = 1  # its room is its own
            yield items[start : start + size]
            start += size

    def _complete(self, batch: list[_Item]) -> pa.Table:
        if self.speaker is None:
            self.speaker = Speaker(self.model, self.tokenizer)
        settings = self.settings
        room = min(settings.max_new_tokens, self.longest - len(batch[0].ids))
        draws = None
        if settings.temperature > 0:
            draws = np.stack(
                [uniforms(settings.seed, int(self.rows[i.place]), i.sample, room) for i in batch]
            )
        said = self.speaker.complete(
            [item.ids for item in batch], room, settings.temperature, settings.top_p, draws
        )
        return pa.table(
            {
                "place": pa.array([item.place for item in batch], pa.int64()),
                ROW: pa.array([self.rows[item.place] for item in batch], pa.int64()),
                "sample": pa.array([item.sample for item in batch], pa.int64()),
                "completion": pa.array(
                    [
                        self._text(item.ids, ids[:-1] if ended else ids)
                        for item, (ids, ended) in zip(batch, said, strict=True)
                    ],
                    pa.string(),
                ),
                "finished": pa.array([ended for _, ended in said]),
                "tokens": pa.array([ids for ids, _ in said], pa.list_(pa.int32())),
            }
        )

    def _text(self, prompt: list[int], said: list[int]) -> str:
        """Return new tokens as the text that continues the prompt.

        Some tokenizers drop a space in front of what they are given, so the prompt goes in too.
        """

        def decode(ids: list[int]) -> str:
            return str(
                self.tokenizer.decode(
                    ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            )

        before, whole = decode(prompt), decode(prompt + said)
        return whole[len(before) :] if whole.startswith(before) else decode(said)


def completion_logprobs(
    model: str,
    table: pa.Table,
    *,
    tokens_per_batch: int = 8192,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return how probable a model finds completions.

    Parameters
    ----------
    model : str
        Folder or hub id of a causal language model.
    table : pyarrow.Table
        With ``prompt``, and with ``tokens``, lists of int as :func:`generate` gives them, or else
        with ``completion``, whose end mark counts too unless a bool column ``finished`` says that
        it was broken off.
    tokens_per_batch : int
        Most tokens of a batch, padding included.
    progress : callable, optional
        Called with ("score", rows done, rows in all).

    Returns
    -------
    logprobs : float64 array of shape (n,)
        Natural logarithm of the probability of the completion's tokens, given the prompt; 0 where
        there are none. Its negative is the loss of training on the row, summed over its tokens.
    tokens : int64 array of shape (n,)
        How many tokens that is.

    Raises
    ------
    WhetError
        If model or rows cannot be used, or a row has more tokens than the model reads.
    """
    if tokens_per_batch < 1:
        raise WhetError(f"tokens_per_batch = {tokens_per_batch}: it must be at least 1")
    torch = require("torch", PURPOSE)
    table = check_examples(table, ["prompt", "completion"])
    tokenizer = load_tokenizer(model)
    encoded = _encoded(tokenizer, table)
    longest = longest_of(find_model(model), model, tokenizer)
    place = max(range(len(encoded)), key=lambda k: len(encoded[k].ids))
    if len(encoded[place].ids) > longest:
        raise WhetError(
            f"row {place} has {len(encoded[place].ids):,} tokens, and the model reads {longest:,}: "
            "remove the row"
        )
    module = load_causal(model)
    vocabulary = module.config.get_text_config().vocab_size
    logprobs = np.zeros(len(encoded))
    done = 0
    for batch in _scoring_batches(encoded, tokens_per_batch, vocabulary):
        with torch.inference_mode():
            logprobs[batch] = _score(module, [encoded[k] for k in batch], tokenizer.pad_token_id)
        done += len(batch)
        if progress is not None:
            progress("score", done, len(encoded))
    return logprobs, np.array([len(row.ids) - max(row.start, 1) for row in encoded])


def _encoded(tokenizer: Any, table: pa.Table) -> list[Encoded]:  # noqa: ANN401
    """Return the tokens that a model wrote where they are known, else those of the text."""
    prompts = table["prompt"].to_pylist()
    if "tokens" in table.column_names and pa.types.is_list(table["tokens"].type):
        heads = encode_prompts(tokenizer, prompts)
        said = table["tokens"].to_pylist()
        return [
            Encoded(head + ids, len(head), len(head)) for head, ids in zip(heads, said, strict=True)
        ]
    finished = table["finished"].to_pylist() if "finished" in table.column_names else None
    return encode(tokenizer, prompts, table["completion"].to_pylist(), finished)


def _scoring_batches(
    encoded: Sequence[Encoded], tokens: int, vocabulary: int
) -> Iterator[list[int]]:
    """Yield numbers of rows of about one length, longest first."""
    order = sorted(range(len(encoded)), key=lambda k: -len(encoded[k].ids))
    start = 0
    while start < len(order):
        width = len(encoded[order[start]].ids)
        size = max(1, min(tokens // width, LOGIT_CELLS // (width * vocabulary)))
        yield order[start : start + size]
        start += size


def _score(module: Any, rows: Sequence[Encoded], pad: int) -> NDArray[np.float64]:  # noqa: ANN401
    """Return the log-probabilities of rows' completions; padding is on the right."""
    torch, device = require("torch", PURPOSE), module.device
    width = max(len(row.ids) for row in rows)
    first = max(1, min(row.start for row in rows)) - 1  # the column whose logits are needed first
    ids = torch.tensor([row.ids + [pad] * (width - len(row.ids)) for row in rows], device=device)
    columns = torch.arange(width, device=device)
    lengths = torch.tensor([len(row.ids) for row in rows], device=device)[:, None]
    starts = torch.tensor([row.start for row in rows], device=device)[:, None]
    more = {"logits_to_keep": width - first} if takes(module, "logits_to_keep") else {}
    out = module(input_ids=ids, attention_mask=(columns < lengths).long(), use_cache=False, **more)
    logits = out.logits[:, first - width : -1].float()
    taken = logits.gather(-1, ids[:, first + 1 :, None])[..., 0] - logits.logsumexp(-1)
    learned = (columns >= starts) & (columns < lengths)
    scores: NDArray[np.float64] = (taken.double() * learned[:, first + 1 :]).sum(-1).cpu().numpy()
    return scores
