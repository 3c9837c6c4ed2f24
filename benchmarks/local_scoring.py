"""Labels from a local model: class names scored against answers generated and parsed, paired.

    python benchmarks/local_scoring.py --out benchmarks/results/local-scoring.md
        [--data DIR] [--rows 256] [--examples 0] [--repeats 5] [--hidden 256] [--layers 8]
        [--steps 40] [--device cpu]

All ways see the same model, prompts and rows in one process, one after the other in each repeat,
in turning order, and each repeat gives one ratio. The model is small and learns before the clock
starts, in a few steps, what an answer looks like; time depends on its size, not on what it knows.
Generation is constrained to the task's answers (at each step only tokens that continue one of them
are allowed), and once more it is not. `--data` takes the texts of DIR/babe_llm instead of made-up
sentences.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

from whet import __version__
from whet.annotate.local import LocalBackend
from whet.annotate.prompts import label_answer, label_request, parse_label
from whet.annotate.protocol import Answer, Request
from whet.annotate.task import Example, Task, load_task

TASK = """
name: tone
instruction: >
  Decide whether this sentence from a news article is fair or biased. A sentence is biased if its
  words are loaded, judgemental or emotional where neutral ones would do, and so push the reader to
  a view. Judge the words, not the topic, the outlet or your own view of the matter. Strong words
  inside a quotation that the sentence merely reports, and facts that are unpleasant but plainly
  worded, are not biased.
classes:
  - name: biased
    description: The author's choice of words takes sides or colours what it reports.
  - name: fair
    description: The wording is neutral and factual, even if the matter is controversial.
"""
TEMPLATE = (
    "<s>{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "senator minister court union company market council report plan law vote budget storm school "
    "hospital team agency border city the a this its their new old said passed met signed delayed "
    "cut raised closed opened on after before during against with for Tuesday Friday June winter"
)
LOADED = "reckless shameful slammed mocked disgraceful heroic"


def sentences(count: int, rng: np.random.Generator) -> list[str]:
    """Return sentences of 20 to 90 words, 55 on average; half of them hold loaded words."""
    plain, both = PLAIN.split(), PLAIN.split() + LOADED.split()
    drawn = [
        rng.choice(both if k % 2 else plain, n) for k, n in enumerate(rng.integers(20, 91, count))
    ]
    return [" ".join(words).capitalize() + "." for words in drawn]


def make_model(folder: Path, texts: list[str], task: Task, args: argparse.Namespace) -> None:
    """Save a model that knows the form of an answer, and a tokenizer learnt from the texts."""
    hidden, layers, device, steps = args.hidden, args.layers, args.device, args.steps
    tokens = tokenizers.Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    shared = [said for _, said in label_request(task, "").messages]
    answers = [label_answer(task, name) for name in task.classes]
    tokens.train_from_iterator([*texts, *(shared + answers) * 50], trainer)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, **{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    )
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 32),
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = transformers.LlamaForCausalLM(config).to(device)
    teach(model, wrapped, task, steps)
    model.save_pretrained(folder)


def teach(model: Any, tokenizer: Any, task: Task, steps: int) -> None:  # noqa: ANN401
    """Train a model on made-up sentences until it knows what an answer looks like."""
    rng = np.random.default_rng(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    biased, fair = list(task.classes)
    for _ in range(steps):
        batch = []
        for text in sentences(8, rng):
            label = biased if any(word in text.lower() for word in LOADED.split()) else fair
            messages = [
                {"role": r, "content": said} for r, said in label_request(task, text).messages
            ]
            prompt = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            start, whole = (
                tokenizer(said, add_special_tokens=False)["input_ids"]
                for said in (prompt, prompt + label_answer(task, label) + "</s>")
            )
            batch.append((len(start), whole))
        width = max(len(whole) for _, whole in batch)
        ids = torch.tensor([[*whole] + [1] * (width - len(whole)) for _, whole in batch])
        targets = torch.full_like(ids, -100)
        for row, (start, whole) in zip(targets, batch, strict=True):
            row[start : len(whole)] = torch.tensor(whole[start:])
        loss = model(input_ids=ids.to(model.device), labels=targets.to(model.device)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.3f} after {steps} steps", flush=True)  # noqa: T201


class Generating:
    """Generate an answer to each prompt and parse it, as scripts around ``generate`` do."""

    def __init__(self, folder: Path, task: Task, device: str) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        self.model = (
            transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        )
        self.device, self.classes = device, list(task.classes)
        prompt = self._prompt(label_request(task, "a text"))
        start = self._ids(prompt)
        wholes = [self._ids(prompt + label_answer(task, name)) for name in self.classes]
        assert all(whole[: len(start)] == start for whole in wholes)
        self.answers = [[*whole[len(start) :], 1] for whole in wholes]
        self.steps = max(map(len, self.answers))

    def _prompt(self, request: Request) -> str:
        messages = [{"role": role, "content": said} for role, said in request.messages]
        return str(
            self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def __call__(
        self, requests: list[Request], batch: int, constrained: bool = True
    ) -> list[str | None]:
        """Return the parsed labels."""
        prompts = [self._prompt(request) for request in requests]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        labels: list[str | None] = [None] * len(prompts)
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            inputs = self.tokenizer(
                [prompts[i] for i in part],
                add_special_tokens=False,
                padding=True,
                return_tensors="pt",
                return_token_type_ids=False,
            ).to(self.device)
            width = inputs["input_ids"].shape[1]
            allowed = self._allowed(width) if constrained else None
            with torch.inference_mode():
                said = self.model.generate(
                    **inputs,
                    do_sample=False,
                    max_new_tokens=16,
                    prefix_allowed_tokens_fn=allowed,
                )
            answers = self.tokenizer.batch_decode(said[:, width:], skip_special_tokens=True)
            for i, answer in zip(part, answers, strict=True):
                parsed = parse_label(answer, self.classes)
                labels[i] = None if parsed is None else parsed.label
        return labels

    def _allowed(self, width: int) -> Callable[[int, Any], list[int]]:
        def allowed(_row: int, ids: Any) -> list[int]:  # noqa: ANN401
            said = ids[width:].tolist()
            following = {a[len(said)] for a in self.answers if a[: len(said)] == said != a}
            return sorted(following) or [1]

        return allowed


def labels_of(backend: LocalBackend, requests: list[Request]) -> list[str | None]:
    """Return the scored labels."""
    replies = asyncio.run(backend.complete(requests))
    assert all(isinstance(reply, Answer) for reply in replies)
    found = [parse_label(str(getattr(reply, "text", "")), requests[0].choices) for reply in replies]
    return [said and said.label for said in found]


def measure(args: argparse.Namespace) -> list[str]:
    """Return the lines of the report."""
    rng = np.random.default_rng(0)
    source = "made-up sentences"
    texts = sentences(args.rows + 2000, rng)
    if args.data:
        import pyarrow.parquet as pq

        table = pq.read_table(Path(args.data) / "babe_llm" / "test.parquet", columns=["text"])
        texts, source = table["text"].to_pylist(), "sentences of babe_llm"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "task.yaml").write_text(TASK)
        task = load_task(folder / "task.yaml")
        make_model(folder, [*texts, PLAIN, LOADED], task, args)
        shown = zip(texts[args.rows :], list(task.classes) * args.examples, strict=False)
        examples = tuple(Example(text, label) for text, label in shown)[: args.examples]
        task = dataclasses.replace(task, examples=examples)
        requests = [label_request(task, text) for text in texts[: args.rows]]
        backend = LocalBackend(str(folder), device=args.device)
        generating = Generating(folder, task, args.device)
    ways: dict[str, Callable[[], list[str | None]]] = {
        "scored": lambda: labels_of(backend, requests),
        "generated, one row at a time": lambda: generating(requests, 1),
        "generated, 64 rows at a time": lambda: generating(requests, 64),
        "the same without the constraint": lambda: generating(requests, 64, False),
    }
    labels_of(backend, requests[:16])  # the first passes set memory up
    generating(requests[:16], 16)
    times: dict[str, list[float]] = {way: [] for way in ways}
    labels: dict[str, list[str | None]] = {}
    for repeat in range(args.repeats):
        turn = repeat % len(ways)
        for way in [*list(ways)[turn:], *list(ways)[:turn]]:
            start = time.perf_counter()
            labels[way] = ways[way]()
            times[way].append(time.perf_counter() - start)
            print(f"{repeat + 1}  {way}: {times[way][-1]:.2f} s", flush=True)  # noqa: T201
    whole = [len(generating._ids(generating._prompt(request))) for request in requests]
    rows = [len(generating._ids(request.messages[-1][1])) for request in requests]
    size = sum(p.numel() for p in generating.model.parameters())
    return [
        *heading(args),
        f"A Llama of hidden size {args.hidden}, {args.layers} layers and a vocabulary of 4,096 "
        f"({size / 1e6:.1f} million parameters), trained for {args.steps} steps from random "
        f"weights. {args.rows} rows, {source}; {args.examples} examples in the prompt. Prompts "
        f"have {np.mean(whole):.0f} tokens on average ({min(whole)} to {max(whole)}), of which "
        f"the row {np.mean(rows):.0f} ({min(rows)} to {max(rows)}); an answer has "
        f"{generating.steps} "
        f"tokens, its end included. {args.repeats} repeats.",
        "",
        *report(times, labels, args.rows),
    ]


def heading(args: argparse.Namespace) -> list[str]:
    """Return title, command and machine."""
    command = shlex.join(["python", *sys.argv[:1], *(a.replace(os.sep, "/") for a in sys.argv[1:])])
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    return [
        "# Class names scored, or answers generated and parsed",
        "",
        f"    {command}",
        "",
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} torch threads, {device}, Python {platform.python_version()}, "
        f"whet {__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
        "",
    ]


def report(
    times: dict[str, list[float]], labels: dict[str, list[str | None]], rows: int
) -> list[str]:
    """Return the table and what it shows; medians, and in brackets least and most."""
    ours = np.array(times["scored"])
    lines = [
        "| way | seconds | rows a second | times as long as scoring | label as scored |",
        "|---|---|---|---|---|",
    ]
    ratios = {}
    for way, taken in times.items():
        seconds = np.array(taken)
        ratio = ratios[way] = seconds / ours
        same = np.mean([a == b for a, b in zip(labels[way], labels["scored"], strict=True)])
        agree = "–" if way == "scored" else f"{100 * same:.1f} %"
        lines.append(
            f"| {way} | {np.median(seconds):.2f} ({seconds.min():.2f} to {seconds.max():.2f}) | "
            f"{rows / np.median(seconds):.1f} | {np.median(ratio):.1f} ({ratio.min():.1f} to "
            f"{ratio.max():.1f}) | {agree} |"
        )
    one, many, free = list(times)[1:]
    lost = labels[free].count(None)
    counts = {str(name): labels["scored"].count(name) for name in labels["scored"]}
    said = ", ".join(f"{name} {count}" for name, count in counts.items())
    return [
        *lines,
        "",
        "Medians over the repeats, and least and most in brackets; the ratio is taken within each "
        "repeat.",
        "",
        f"The target was 10 times: {verdict(ratios[one])} against one row at a time, "
        f"{verdict(ratios[many])} against 64 rows at a time.",
        "",
        f"Labels scored: {said}. Scoring takes the class whose whole name is most probable; "
        "generation takes the most probable token at each step, here the first of the name, so "
        "that the two may differ where the rest of a name decides. Without the constraint "
        f"{lost} of {rows} answers named no class.",
    ]


def verdict(ratio: np.ndarray[Any, Any]) -> str:
    """Say whether a target of ten is met, by the least favourable repeat."""
    if ratio.min() >= 10:
        return "reached in every repeat"
    return "missed" if np.median(ratio) < 10 else "reached by the median, not by every repeat"


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", help="folder of data sets; made-up sentences if absent")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--examples", type=int, default=0, help="shown before each row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40, help="of training, before the clock")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    lines = measure(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
