"""Answers from a model in this process: class names are scored, not generated.

A request whose answer is one label needs no generation: the probability of each class is that of
its name as the answer's text, and one pass over the prompt gives them all. The pass is laid out so
that nothing is computed twice:

- what all prompts begin with (instruction and examples) is run once, and its keys and values are
  shared by all rows;
- the rows are sorted by length, so that a batch holds little padding;
- the names of the classes follow each row as the branches of a tree. An attention mask lets every
  branch see the prompt and itself and no other branch.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, fsum
from pathlib import Path
from typing import Any

from whet.annotate.prompts import without_thinking
from whet.annotate.protocol import Answer, Failure, Reply, Request, Stop
from whet.errors import WhetError
from whet.extras import require
from whet.hub import check_exists, find_folder, fingerprint, reason

#: Most entries of one attention mask, and of one table of log-probabilities.
MASK_CELLS, LOGIT_CELLS = 1 << 26, 1 << 27
#: How the end of a prompt is cut into tokens depends on its last characters.
_TAIL = 16
#: Replacements of the first character of a mark that a text may not hold.
_BROKEN = {"<": "‹", "[": "⟦"}
#: Role names of the rendering for models without a chat template.
_ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}
_ROLE_MARK = re.compile(r"^(\s*)(?=(?:System|User|Assistant)\s*:)", re.MULTILINE | re.IGNORECASE)
#: Templates that show the day would make answers depend on it.
_DAY = "26 Jul 2024"

#: The tokens that tell the classes of a request apart, one tuple a class.
Branches = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Row:
    """A request to be scored: where its reply goes, its prompt and what may follow."""

    place: int
    head: tuple[int, ...]
    choices: tuple[str, ...]
    branches: Branches


class LocalBackend:
    """Answers requests with a causal language model in this process.

    Where a request names its choices, they are scored: the answer holds the probability of each
    and its text is the best one. Other requests are generated, the most probable token at a time
    unless the request has a temperature. Only safetensors weights are read, and no code from a
    model folder is run.

    Parameters
    ----------
    model : str
        Folder of a model, or a hub id, which is downloaded, since naming one asks for it.
    device : str, optional
        As torch names it; a CUDA device where there is one, else the CPU. Weights are bfloat16 on
        CUDA and float32 elsewhere.
    batch_tokens : int, optional
        Most tokens of one pass through the model, padding included; a single row may have more.
        16,384 on CUDA and 1,024 elsewhere, where more is slower.

    Attributes
    ----------
    route : dict
        Name of the model as given, what identifies its weights (see
        :func:`whet.hub.fingerprint`; of a hub id the commit) and their type.
    at_once : int
        256.

    Raises
    ------
    WhetError
        If torch or transformers is not installed, there is no such model, it brings code of its
        own, or its weights are not safetensors.

    Examples
    --------
    >>> LocalBackend("./models/none")
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: the model folder ./models/none does not exist: name the folder of a \
language model, or a hub id
    """

    at_once = 256

    def __init__(
        self, model: str, *, device: str | None = None, batch_tokens: int | None = None
    ) -> None:
        if batch_tokens is not None and batch_tokens < 1:
            raise WhetError(f"batch_tokens = {batch_tokens}: it must be at least 1; raise it")
        given = Path(model).expanduser()
        check_exists(model)
        self._transformers = require("transformers", "the local back end")
        self._torch = require("torch", "the local back end")
        self._name = model
        self._folder = find_folder(model, "the local back end")
        self._device = device or ("cuda" if self._torch.cuda.is_available() else "cpu")
        half = self._device.startswith("cuda")
        self._batch_tokens = batch_tokens or (16384 if half else 1024)
        self._dtype = self._torch.bfloat16 if half else self._torch.float32
        # The hub's cache names the folder of a snapshot by its commit.
        weights = fingerprint(self._folder) if given.is_dir() else self._folder.name
        self.route: Mapping[str, Any] = {
            "backend": "local",
            "model": model,
            "weights": weights,
            "dtype": "bfloat16" if half else "float32",
        }
        self._lock = threading.Lock()
        self._model: Any = None
        self._load()

    async def complete(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer each request, in order."""
        return await asyncio.to_thread(self._complete, list(requests))

    async def close(self) -> None:
        """Give the memory of the weights back; the next request loads them again."""
        with self._lock:
            self._model = None
            if self._device.startswith("cuda"):
                self._torch.cuda.empty_cache()

    def _complete(self, requests: list[Request]) -> list[Reply]:
        scored = {i: request for i, request in enumerate(requests) if request.choices}
        free = {i: request for i, request in enumerate(requests) if not request.choices}
        try:
            with self._lock, self._torch.inference_mode():
                if self._model is None:
                    self._load()
                replies = self._score(scored) | self._generate(free)
        except WhetError as error:
            raise Stop(str(error)) from error
        except self._torch.cuda.OutOfMemoryError as error:
            raise Stop(
                f"the memory of {self._device} is not enough for {self._name!r} with batch_tokens "
                f"= {self._batch_tokens}: lower it, or choose a smaller model"
            ) from error
        return [replies[i] for i in range(len(requests))]

    # --- loading --------------------------------------------------------------------------------

    def _load(self) -> None:
        library = self._transformers
        library.utils.logging.disable_progress_bar()
        try:
            self._tokenizer = library.AutoTokenizer.from_pretrained(
                str(self._folder), trust_remote_code=False, local_files_only=True
            )
            try:
                model = self._weights("sdpa")
            except ValueError:  # an architecture without it
                model = self._weights("eager")
            self._model = model.to(self._device).eval()
        except Exception as error:  # a damaged folder fails in as many ways as it has files
            raise WhetError(
                f"the model {self._name!r} cannot be loaded ({reason(error)}): name a folder that "
                "holds a causal language model of transformers with safetensors weights"
            ) from error
        config = self._model.config.get_text_config(decoder=True)
        self._longest: int | None = getattr(config, "max_position_embeddings", None)
        takes = inspect.signature(self._model.forward).parameters
        self._keeps_logits = "logits_to_keep" in takes
        self._shares = (
            {"position_ids", "past_key_values"} <= set(takes)
            and not getattr(config, "alibi", False)
            and _attends_to_all(library, self._model.config)
        )
        self._learn_tokens()

    def _weights(self, attention: str) -> Any:  # noqa: ANN401
        config = self._transformers.AutoConfig.from_pretrained(
            str(self._folder), trust_remote_code=False, local_files_only=True
        )
        if getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None):
            attention = "eager"
        return self._transformers.AutoModelForCausalLM.from_pretrained(
            str(self._folder),
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            attn_implementation=attention,
            dtype=self._dtype,
        )

    def _learn_tokens(self) -> None:
        """Learn from the tokenizer which marks a text may not hold, and what ends an answer."""
        tokenizer, ours = self._tokenizer, self._model.generation_config
        template = str(tokenizer.chat_template or "")
        added = {
            i: token.content
            for i, token in tokenizer.added_tokens_decoder.items()
            if token.content.strip() and (token.special or _speaks(token.content, template))
        }
        # Letters that the vocabulary lacks become the unknown token without being a mark.
        self._marked = set(added) - {tokenizer.unk_token_id}
        longest_first = sorted(set(added.values()), key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        first = tokenizer("", verbose=False)["input_ids"][:1]
        self._begin = tuple(i for i in first if i == tokenizer.bos_token_id)
        ends = ours.eos_token_id if ours.eos_token_id is not None else []
        self._ends = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
        self._ends.discard(None)
        self._pad = tokenizer.pad_token_id
        if self._pad is None:
            self._pad = min(self._ends, default=0)
        # What the folder sets for generation is for chats: temperature, penalties, and the like.
        self._model.generation_config = self._transformers.GenerationConfig(
            eos_token_id=sorted(self._ends) or None, pad_token_id=self._pad
        )
        self._expected: dict[tuple[str, ...], int] = {}
        self._known: dict[tuple[str, tuple[str, ...]], Branches] = {}

    # --- from messages to tokens ----------------------------------------------------------------

    def _defuse(self, text: str) -> str:
        """Break up what this tokenizer would take for a mark of its template."""

        def broken(match: re.Match[str]) -> str:
            first, rest = match[0][0], match[0][1:]
            if first in _BROKEN:
                return _BROKEN[first] + rest
            return f"{first}\u2060{rest}" if rest else "·"

        while self._marks.search(text):
            text = self._marks.sub(broken, text)
        return text if self._tokenizer.chat_template else _ROLE_MARK.sub(r"\1› ", text)

    def _render(self, messages: Sequence[tuple[str, str]]) -> str:
        """Return the prompt as text, up to where the answer begins."""
        if not self._tokenizer.chat_template:
            said = [f"{_ROLES[role]}: {content}" for role, content in messages]
            return "\n\n".join([*said, "Assistant: "])
        try:
            return self._templated(messages)
        except Exception as error:  # templates raise what they like
            if messages[0][0] == "system" and len(messages) > 1:  # some know no system role
                (_, system), (role, content), *others = messages
                try:
                    return self._templated([(role, f"{system}\n\n{content}"), *others])
                except Exception:  # noqa: S110 - the first one says why
                    pass
            raise WhetError(
                f"the chat template of {self._name!r} refuses the messages ({reason(error)}): "
                "mend the template or remove it from the folder"
            ) from error

    def _templated(self, messages: Sequence[tuple[str, str]]) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in messages],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
                date_string=_DAY,
            )
        )

    def _ids(self, texts: list[str]) -> list[tuple[int, ...]]:
        """Return the tokens of whole prompts."""
        if not texts:
            return []
        lists = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        begin = () if self._tokenizer.chat_template else self._begin
        return [(*begin, *ids) for ids in lists]

    def _prompts(
        self, requests: Mapping[int, Request]
    ) -> tuple[dict[int, str], dict[int, tuple[int, ...]], dict[int, Reply]]:
        """Return each prompt as text and as tokens, and refusals of those that hold marks.

        The tokens of a prompt to be scored are those of the prompt with its first choice, so that
        both are cut into tokens together.
        """
        texts = {
            i: self._render([(role, self._defuse(content)) for role, content in r.messages])
            for i, r in requests.items()
        }
        starts = {i: text + _ends_of(requests[i].choices)[0] for i, text in texts.items()}
        tokens = dict(zip(starts, self._ids(list(starts.values())), strict=True))
        refused: dict[int, Reply] = {}
        for i, ids in tokens.items():
            roles = tuple(role for role, _ in requests[i].messages)
            if roles not in self._expected:
                (plain,) = self._ids([self._render([(role, "x") for role in roles])])
                self._expected[roles] = self._count_marks(plain)
            if self._count_marks(ids) != self._expected[roles]:
                refused[i] = Failure(
                    "rejected", "the text holds what the tokenizer takes for a mark of its template"
                )
        return texts, tokens, refused

    def _count_marks(self, ids: Sequence[int]) -> int:
        return sum(i in self._marked for i in ids)

    def _rows(self, requests: Mapping[int, Request]) -> tuple[list[_Row], dict[int, Reply]]:
        texts, tokens, replies = self._prompts(requests)
        rows = []
        for i, request in requests.items():
            if i in replies:
                continue
            branches = self._branches(texts[i], tokens[i], request.choices)
            head = tokens[i][: len(tokens[i]) - len(branches[0])]
            length = len(head) + max(map(len, branches))
            if self._longest is not None and length > self._longest:
                replies[i] = _too_long(length, self._longest)
            else:
                rows.append(_Row(i, head, request.choices, branches))
        return rows, replies

    def _branches(self, prompt: str, ids: tuple[int, ...], choices: tuple[str, ...]) -> Branches:
        """Return the tokens of each choice from where the choices differ.

        Every prompt with every choice is cut into tokens as a whole, since tokens may reach over
        the end of the prompt. Prompts that end in the same characters and tokens share the result.
        """
        key = (prompt[-_TAIL:], choices)
        known = self._known.get(key)
        if known is not None and ids[len(ids) - len(known[0]) :] == known[0]:
            return known
        wholes = self._ids([prompt + end for end in _ends_of(choices)])
        common = len(_common(wholes))
        self._known[key] = tuple(whole[common:] for whole in wholes)
        return self._known[key]

    # --- scoring --------------------------------------------------------------------------------

    def _score(self, requests: Mapping[int, Request]) -> dict[int, Reply]:
        rows, replies = self._rows(requests)
        groups: dict[Branches, list[_Row]] = {}
        for row in rows:
            groups.setdefault(row.branches, []).append(row)
        for branches, group in groups.items():
            if not self._shares:
                replies |= self._score_whole(group)
                continue
            # Very long rows go alone: a mask grows with the square of what is not shared.
            tree = _Tree(branches)
            shared = len(_common([row.head for row in group]))
            parts: dict[int | None, list[_Row]] = {}
            for row in group:
                own = len(row.head) - shared + len(tree.tokens)
                alone = own * (own + shared) > MASK_CELLS // 4
                parts.setdefault(row.place if alone else None, []).append(row)
            for part in parts.values():
                replies |= self._score_group(part, tree)
        return replies

    def _score_group(self, rows: list[_Row], tree: _Tree) -> dict[int, Reply]:
        """Score rows whose classes have the same tokens."""
        shortest = min(len(row.head) for row in rows)
        prefix = _common([row.head for row in rows])[: shortest - 1]  # the last gives logits
        cache = self._prefill(prefix)
        replies: dict[int, Reply] = {}
        longest_first = sorted(rows, key=lambda row: -len(row.head))
        for batch in self._batches(longest_first, len(prefix), len(tree.tokens)):
            scores = self._score_batch(batch, len(prefix), tree, cache)
            for row, logs in zip(batch, scores, strict=True):
                replies[row.place] = _answer(row, logs)
        return replies

    def _prefill(self, prefix: Sequence[int]) -> Any:  # noqa: ANN401
        """Return the keys and values of what all rows begin with, None where that is nothing."""
        if not prefix:
            return None
        torch = self._torch
        cache = self._transformers.DynamicCache(config=self._model.config)
        ids = torch.tensor([list(prefix)], device=self._device)
        step = max(1, min(self._batch_tokens, MASK_CELLS // len(prefix)))
        for start in range(0, len(prefix), step):
            part = ids[:, start : start + step]
            self._logits(1, input_ids=part, past_key_values=cache, use_cache=True)
        for layer in cache.layers:
            _freeze(torch, layer)
        return cache

    def _batches(self, rows: list[_Row], shared: int, branch: int) -> Iterator[list[_Row]]:
        """Cut rows, longest first, into batches that fit into memory and hold little padding."""
        vocabulary = self._model.config.get_text_config(decoder=True).vocab_size
        batch: list[_Row] = []
        real = 0
        for row in rows:
            width = (len(batch[0].head) if batch else len(row.head)) - shared + branch
            padded = (len(batch) + 1) * width
            full = (
                padded > self._batch_tokens
                or padded * (shared + width) > MASK_CELLS
                or (len(batch) + 1) * (branch + 1) * vocabulary > LOGIT_CELLS
                or (len(batch) >= 8 and padded > 1.2 * (real + len(row.head) - shared + branch))
            )
            if batch and full:
                yield batch
                batch, real = [], 0
            batch.append(row)
            real += len(row.head) - shared + branch
        if batch:
            yield batch

    def _score_batch(
        self,
        rows: list[_Row],
        shared: int,
        tree: _Tree,
        cache: Any,  # noqa: ANN401
    ) -> list[list[float]]:
        """Return log-probabilities of each row's classes, from one pass.

        Columns are the rest of the prompt, padded on the left, then the tree. So the tokens that
        are scored follow the same columns in all rows.
        """
        torch, device = self._torch, self._device
        rests = [row.head[shared:] for row in rows]
        width, branch = max(map(len, rests)), len(tree.tokens)
        padding = [width - len(rest) for rest in rests]
        ids = [
            [self._pad] * n + [*rest, *tree.tokens] for n, rest in zip(padding, rests, strict=True)
        ]
        before = torch.tensor(padding, device=device)[:, None]
        columns = torch.arange(width, device=device)[None, :]
        depths = torch.tensor(tree.depths, device=device, dtype=torch.long)[None, :]
        positions = torch.cat(
            [(shared + columns - before).clamp(min=0), shared + width - before + depths], dim=1
        )
        seen = torch.zeros(
            len(rows), width + branch, shared + width + branch, dtype=torch.bool, device=device
        )
        seen[:, :, :shared] = True
        real = columns >= before
        causal = columns <= columns.T
        seen[:, :width, shared : shared + width] = causal & real[:, None, :]
        seen[:, width:, shared : shared + width] = real[:, None, :]
        seen[:, width:, shared + width :] = torch.tensor(
            tree.ancestors, dtype=torch.bool, device=device
        ).view(branch, branch)
        # A padding token that sees nothing would make its row not a number.
        seen.diagonal(offset=shared, dim1=1, dim2=2)[:] = True
        nothing = torch.finfo(self._dtype).min
        mask = torch.zeros(seen.shape, dtype=self._dtype, device=device).masked_fill_(
            ~seen, nothing
        )
        logits = self._logits(
            branch + 1,
            input_ids=torch.tensor(ids, device=device),
            attention_mask=mask[:, None],
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        after = torch.tensor(tree.after, device=device, dtype=torch.long)
        token = torch.tensor(tree.scored, device=device, dtype=torch.long)
        picked = [row.float().log_softmax(-1)[after, token] for row in logits]
        logs = torch.stack(picked).double().cpu()
        return [[float(row[a:b].sum()) for a, b in tree.spans] for row in logs]

    def _score_whole(self, rows: list[_Row]) -> dict[int, Reply]:
        """Score rows of a model that cannot share keys and values: each class on its own.

        Padding on the right is seen by no token before it, whatever the architecture.
        """
        torch = self._torch
        work = [(r, k, (*r.head, *r.branches[k])) for r in rows for k in range(len(r.choices))]
        work.sort(key=lambda item: -len(item[2]))
        scores: dict[int, dict[int, float]] = {row.place: {} for row in rows}
        vocabulary = self._model.config.get_text_config(decoder=True).vocab_size
        while work:
            width = len(work[0][2])
            size = max(1, self._batch_tokens // width)
            while True:
                first = min(len(row.head) for row, _, _ in work[:size]) - 1
                kept = width - first if self._keeps_logits else width
                if size == 1 or size * kept * vocabulary <= LOGIT_CELLS:
                    break
                size //= 2
            batch, work = work[:size], work[size:]
            ids = [[*whole] + [self._pad] * (width - len(whole)) for _, _, whole in batch]
            mask = [[1] * len(whole) + [0] * (width - len(whole)) for _, _, whole in batch]
            logits = self._logits(
                width - first,
                input_ids=torch.tensor(ids, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
                use_cache=False,
            )
            for table, (row, k, whole) in zip(logits, batch, strict=True):
                start = len(row.head) - 1 - first
                logs = table[start : start + len(row.branches[k])].float().log_softmax(-1)
                taken = torch.tensor(whole[len(row.head) :], device=self._device, dtype=torch.long)
                total = logs.gather(1, taken[:, None]).double().sum()
                scores[row.place][k] = float(total)
        return {
            row.place: _answer(row, [scores[row.place][k] for k in range(len(row.choices))])
            for row in rows
        }

    def _logits(self, last: int, **inputs: Any) -> Any:  # noqa: ANN401
        """Return the logits of the last columns."""
        if self._keeps_logits:
            inputs["logits_to_keep"] = last
        return self._model(**inputs).logits[:, -last:]

    # --- generating -----------------------------------------------------------------------------

    def _generate(self, requests: Mapping[int, Request]) -> dict[int, Reply]:
        _, tokens, replies = self._prompts(requests)
        for i, ids in tokens.items():
            if self._longest is not None and len(ids) >= self._longest:
                replies.setdefault(i, _too_long(len(ids), self._longest))
        lengths = {requests[i].max_tokens for i in tokens if i not in replies}
        for most in sorted(lengths):
            todo = [i for i in tokens if i not in replies and requests[i].max_tokens == most]
            todo.sort(key=lambda i: -len(tokens[i]))
            while todo:
                width = len(tokens[todo[0]])
                size = max(1, self._batch_tokens // (width + most))
                if self._longest is not None and width + most > self._longest:
                    size = 1  # its room is its own
                batch, todo = todo[:size], todo[size:]
                asked = [requests[i] for i in batch]
                said = self._continue([tokens[i] for i in batch], asked, most)
                replies |= dict(zip(batch, said, strict=True))
        return replies

    def _continue(
        self, prompts: list[tuple[int, ...]], requests: list[Request], most: int
    ) -> list[Reply]:
        torch = self._torch
        width = max(map(len, prompts))
        room = most if self._longest is None else min(most, self._longest - width)
        ids = [[self._pad] * (width - len(p)) + [*p] for p in prompts]
        mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
        whole = self._model.generate(
            torch.tensor(ids, device=self._device),
            attention_mask=torch.tensor(mask, device=self._device),
            generation_config=self._transformers.GenerationConfig(
                max_new_tokens=room,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                eos_token_id=sorted(self._ends) or None,
                pad_token_id=self._pad,
            ),
            logits_processor=[_Sampler(torch, requests)],
        )
        replies: list[Reply] = []
        for prompt, said in zip(prompts, whole[:, width:].tolist(), strict=True):
            end = next((k for k, token in enumerate(said) if token in self._ends), None)
            text = None
            if end is not None:
                text = without_thinking(
                    self._tokenizer.decode(
                        said[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
                    )
                )
            if end is None or text is None:
                replies.append(Failure("truncated", f"{room} tokens were not enough"))
            else:
                replies.append(Answer(text, len(prompt), end + 1))
        return replies


class _Tree:
    """The tokens that follow a prompt, those that classes share once.

    A class's last token is scored, but nothing follows it: it is not in the tree.
    """

    def __init__(self, branches: Branches) -> None:
        nodes: dict[tuple[int, ...], int] = {}
        for branch in branches:
            for end in range(1, len(branch)):
                nodes.setdefault(branch[:end], len(nodes))
        self.tokens = [path[-1] for path in nodes]
        self.depths = [len(path) - 1 for path in nodes]
        self.ancestors = [[path[: len(other)] == other for other in nodes] for path in nodes]
        # What is scored: after which column (0 the prompt's last token) comes which token.
        self.after: list[int] = []
        self.scored: list[int] = []
        self.spans: list[tuple[int, int]] = []
        for branch in branches:
            start = len(self.scored)
            for end, token in enumerate(branch):
                self.after.append(nodes[branch[:end]] + 1 if end else 0)
                self.scored.append(token)
            self.spans.append((start, len(self.scored)))


class _Sampler:
    """Draws from the model's distribution, for each row with a seed of its own.

    The greatest of log-probability plus Gumbel noise is a draw. So the draw of a row does not
    depend on which rows are generated beside it.
    """

    def __init__(self, torch: Any, requests: Sequence[Request]) -> None:  # noqa: ANN401
        self._torch, self._draws = torch, []
        for place, request in enumerate(requests):
            if request.temperature > 0:
                seed = int(request.key({})[:15], 16)
                generator = torch.Generator().manual_seed(seed)
                self._draws.append((place, request.temperature, generator))

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ANN401
        del input_ids
        if self._draws:
            scores = scores.float()
        for place, temperature, generator in self._draws:
            noise = self._torch.rand(scores.shape[1], generator=generator).clamp_(1e-20, 1 - 1e-7)
            scores[place] = scores[place] / temperature - (-noise.log()).log().to(scores.device)
        return scores


def _attends_to_all(library: Any, config: Any) -> bool:  # noqa: ANN401
    """Whether every layer sees the whole prompt, so that keys and values are all there is to keep.

    Sliding windows count padding, and recurrent layers keep a state instead.
    """
    if "local" in getattr(config, "attention_layers", ()):  # GPT-Neo hides its windows here
        return False
    try:
        layers = library.DynamicCache(config=config).layers
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    return bool(layers) and all(type(layer).__name__ == "DynamicLayer" for layer in layers)


def _speaks(content: str, template: str) -> bool:
    """Whether an added token that is not called special marks roles, as HTML tags do not."""
    return any(c in content for c in "|｜[") or ("<" in content and content in template)


def _freeze(torch: Any, layer: Any) -> None:  # noqa: ANN401
    """Make a layer of a cache give its keys and values to any number of rows and keep none."""
    kept, held = layer.keys, layer.values

    def update(keys: Any, values: Any, *_: Any, **__: Any) -> tuple[Any, Any]:  # noqa: ANN401
        rows = len(keys)
        return (
            torch.cat([kept.expand(rows, -1, -1, -1), keys], dim=-2),
            torch.cat([held.expand(rows, -1, -1, -1), values], dim=-2),
        )

    layer.update = update


def _ends_of(choices: Sequence[str]) -> list[str]:
    """Return the answers that a prompt may have; one that is empty where it is free text."""
    return [json.dumps({"label": name}, ensure_ascii=False) for name in choices] or [""]


def _common(lists: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return what all begin with: what the first and the last in order do."""
    first, last = min(lists), max(lists)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((k for k, (a, b) in pairs if a != b), len(first))]


def _answer(row: _Row, logs: Sequence[float]) -> Answer:
    top = max(logs)
    weights = [exp(value - top) for value in logs]
    total = fsum(weights)
    best = row.choices[max(range(len(logs)), key=logs.__getitem__)]
    return Answer(
        _ends_of([best])[0],
        prompt_tokens=len(row.head),
        probabilities={n: w / total for n, w in zip(row.choices, weights, strict=True)},
    )


def _too_long(length: int, longest: int) -> Failure:
    return Failure("rejected", f"{length:,} tokens, the model takes {longest:,}")
