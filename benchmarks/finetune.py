"""Fine-tuning by this project against a loop that does what the released code of SILR does.

One run, side by side, in turn, each in a process of its own: a 4-layer Llama with random
weights (with ``--shape 1b`` one of Llama-3.2-1B's shape, for a GPU), a byte-level BPE tokenizer
trained on the texts, LoRA of rank 8, robust UU risk with the true class ratios, the same number of
steps. The loop pads every text to 512 tokens, hands its mask to the model, reads the loss after
every step and empties the CUDA cache where there is one. The first step of each run is not timed.
Memory is the peak of the process above what it had before the model was loaded (of the allocator,
on a GPU).

What is compared with what:

- the same batches: plain batches of 16 rows, each the same rows in both, fp32, no dropout. The risk
  after the steps, on rows of its own, must be the same to 1e-3. The loop has the risk with a, b, c
  and d as the papers write it.
- buckets: stratified batches of texts of about one length. Of the first hundred seeds that one is
  taken under which the few timed steps hold as much padded text a row as the epoch does.
- budget: as many tokens a step as the loop has with its padding.

The third set is of full-length texts: those of babe_llm joined until they fill 512 tokens.

    python benchmarks/finetune.py --data DIR --out benchmarks/results/finetune.md
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from whet.classify.risks import SILR_SLOPE, Risk, uu_coefficients
from whet.finetune.batches import Batches
from whet.finetune.settings import Settings
from whet.finetune.tokens import MULTIPLE, Tokens
from whet.finetune.trainer import FineTuner, Tuned, schedule

LENGTH, BATCH, VOCABULARY = 512, 16, 4096
#: Width, width of the MLP, layers, heads, heads of keys and values, vocabulary of the model.
SHAPES = {
    "4-layer": (256, 688, 4, 4, 2, VOCABULARY),
    "1b": (2048, 8192, 16, 32, 8, 128256),
}
RELEASED = "released loop, padded to 512, fp32"
PLAIN = Settings(
    epochs=1,
    learning_rate=1e-3,
    batch_size=BATCH,
    max_length=LENGTH,
    validation=None,
    precision="fp32",
    lora_dropout=0.0,
    stratified=False,
    bucketed=False,
    set_means="batch",
)
BUCKETS = replace(PLAIN, stratified=True, bucketed=True, set_means="epoch")
OURS = {
    "whet, the same batches, fp32": PLAIN,
    "whet, buckets, fp32": BUCKETS,
    "whet, buckets, bf16": replace(BUCKETS, precision="bf16"),
    "whet, budget, bf16": replace(BUCKETS, precision="bf16", tokens_per_batch=BATCH * LENGTH),
}


@dataclass(frozen=True)
class Case:
    """A corpus with an annotator."""

    name: str
    model: str
    texts: list[str]
    tokens: Tokens
    truth: np.ndarray
    pseudo: np.ndarray
    theta: tuple[float, float]

    @property
    def prior(self) -> float:
        """P(y = 1)."""
        return float(self.truth.mean())

    @property
    def risk(self) -> Risk:
        """The robust UU risk."""
        p, n = self.theta
        return Risk.uu([[1 - n, n], [1 - p, p]], [1 - self.prior, self.prior], SILR_SLOPE)


@dataclass(frozen=True)
class Measured:
    """Rows a second, peak memory in MiB, rows a step, and the risk after the steps."""

    rate: float
    memory: float
    rows: float
    risk: float


def save_model(folder: Path, texts: list[str], shape: str) -> str:
    """Train a tokenizer on the texts and save a Llama with random weights."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    marks = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    width, mlp, layers, heads, kv, words = SHAPES[shape]
    config = transformers.LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        tie_word_embeddings=shape == "1b",
        max_position_embeddings=LENGTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def read(data: Path, name: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return texts, true labels and pseudo-labels: an LLM's, or simulated with accuracy 0.7."""
    table = pq.read_table(data / name / "train.parquet")
    texts, truth = table["text"].to_pylist(), np.array(table["label"].to_pylist())
    if "llm_openchat_zs" in table.column_names:
        pseudo = np.array(table["llm_openchat_zs"].to_pylist())
        known = pseudo >= 0
        return [t for t, k in zip(texts, known, strict=True) if k], truth[known], pseudo[known]
    right = np.random.default_rng(0).random(len(truth)) < 0.7
    return texts, truth, np.where(right, truth, 1 - truth)


def cases(data: Path, folder: Path, shape: str) -> list[Case]:
    """Return the three corpora, cut into tokens."""
    raw = {name: read(data, name) for name in ("babe_llm", "covid_fake_news")}
    model = save_model(folder, [text for texts, _, _ in raw.values() for text in texts], shape)
    texts, truth, pseudo = raw["babe_llm"]
    order = np.argsort(pseudo, kind="stable")
    around = [np.roll(order, -k)[:40] for k in range(len(order))]  # of one pseudo-label, mostly
    joined = [" ".join(texts[k] for k in rows) for rows in around]
    raw["babe_llm, joined"] = (joined, truth[order], pseudo[order])
    tuner = FineTuner(model, PLAIN, device="cpu")
    found = []
    for name, (some, true, said) in raw.items():
        theta = (float(true[said == 1].mean()), float(true[said == 0].mean()))
        found.append(Case(name, model, some, tuner.encode(some), true, said, theta))
    return found


def clock() -> float:
    """Return the time when all work is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak() -> float:
    """Return the peak memory in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def held_out(case: Case) -> np.ndarray:
    """Return rows on which the risk is read after the steps."""
    return np.random.default_rng(7).choice(len(case.texts), 64, replace=False)


def risk_of(case: Case, tuner: FineTuner) -> float:
    """Return the risk of the model as it is."""
    network = tuner.network(2)
    rows = held_out(case)
    tuned = Tuned(network, tuner.processes, network.snapshot(), [])
    scores = tuned.logits(case.tokens, rows).astype(np.float64)
    return case.risk.value_and_gradient(scores, case.pseudo[rows])[0]


def released(case: Case, steps: int) -> Measured:
    """Train as the released code does."""
    before = peak()
    tuner = FineTuner(case.model, PLAIN)
    network, device = tuner.network(2), tuner.processes.device
    settings = typical(case, PLAIN, steps)
    network.reset(settings.seed)
    network.module.set_attn_implementation("sdpa")
    plan = batches_of(case, settings)
    a, b, c, d = uu_coefficients(*case.theta, case.prior)
    optimizer = torch.optim.AdamW(network.trained.values(), lr=1e-3, weight_decay=0.0)
    network.module.train()
    began, rows, total = 0.0, 0, 0.0
    for step, batch in enumerate(plan[: steps + 1]):
        if step == 1:
            began, rows = clock(), 0
        optimizer.param_groups[0]["lr"] = 1e-3 * schedule(step, len(plan), PLAIN.warmup)
        ids, mask = case.tokens.batch(batch, length=LENGTH)
        optimizer.zero_grad()
        g = network.module(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=torch.from_numpy(mask.astype(np.int64)).to(device),
        ).logits[:, 0]
        positive = torch.from_numpy(case.pseudo[batch] == 1).to(device)
        as_positive, as_negative = torch.sigmoid(-g), torch.sigmoid(g)
        parts = (
            a * as_positive[positive].mean() - c * as_positive[~positive].mean(),
            d * as_negative[~positive].mean() - b * as_negative[positive].mean(),
        )
        risk = sum(torch.where(part > 0, part, SILR_SLOPE * part) for part in parts)
        risk.backward()
        optimizer.step()
        total += risk.item()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        rows += len(batch)
    seconds, memory = clock() - began, peak() - before
    return Measured(rows / seconds, memory, rows / steps, risk_of(case, tuner))


class Enough(Exception):
    """The steps are done."""


def ours(case: Case, settings: Settings, steps: int) -> Measured:
    """Train with this project, and stop after some steps."""
    before = peak()
    settings = typical(case, settings, steps)
    tuner = FineTuner(case.model, settings)
    sizes = [len(batch) for batch in batches_of(case, settings)]
    times: list[float] = []

    def count(stage: str, done: int, total: int) -> None:
        del stage, total
        if done in (1, steps + 1):
            times.append(clock())
        if done > steps:
            raise Enough

    everything = (case.tokens, np.arange(len(case.texts)), case.pseudo, case.risk)
    with contextlib.suppress(Enough):
        tuner.fit(*everything, progress=count)
    memory = peak() - before
    rows = sum(sizes[1 : steps + 1])
    return Measured(rows / (times[1] - times[0]), memory, rows / steps, risk_of(case, tuner))


def batches_of(case: Case, settings: Settings) -> list[np.ndarray]:
    """Return the batches of the first epoch."""
    shape = (settings.batch_size, settings.tokens_per_batch, settings.stratified, settings.bucketed)
    return Batches(case.tokens.lengths, case.pseudo, *shape, settings.seed).epoch(0)


def width(case: Case, batches: list[np.ndarray]) -> float:
    """Return tokens a row, padding included."""
    lengths = case.tokens.lengths
    padded = sum(len(b) * -(-int(lengths[b].max()) // MULTIPLE) * MULTIPLE for b in batches)
    return padded / sum(map(len, batches))


def typical(case: Case, settings: Settings, steps: int) -> Settings:
    """Return settings with a seed under which the timed steps are like the epoch."""

    def off(seed: int) -> float:
        plan = batches_of(case, replace(settings, seed=seed))
        return abs(width(case, plan[1 : steps + 1]) - width(case, plan))

    return replace(settings, seed=min(range(100), key=off))


def work(
    there: Connection, case: Case, settings: Settings | None, steps: int, threads: int
) -> None:
    """Measure the loop (no settings) or this project, and send what came out."""
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    there.send(released(case, steps) if settings is None else ours(case, settings, steps))


def alone(case: Case, settings: Settings | None, steps: int, threads: int) -> Measured:
    """Measure in a process of its own, so that memory is not that of the measurement before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "peft", "whet.finetune.trainer"])
    here, there = context.Pipe(duplex=False)
    arguments = (there, replace(case, texts=[""] * len(case.texts)), settings, steps, threads)
    process = context.Process(target=work, args=arguments)
    process.start()
    there.close()
    measured: Measured = here.recv()
    process.join()
    return measured


def machine(threads: int) -> str:
    """Return what it ran on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return f"{cpu}, {threads} thread(s), torch {torch.__version__}"


def report(case: Case, found: dict[str, list[Measured]], steps: int) -> list[str]:
    """Return the table of a corpus and what the check of equal risk says."""
    base = statistics.median(m.rate for m in found[RELEASED])
    lengths = case.tokens.lengths
    lines = [
        f"## {case.name}",
        "",
        f"{len(case.texts):,} texts, {lengths.mean():.0f} tokens on average, at most "
        f"{lengths.max()}; {steps} steps.",
        "",
        "| what | examples/s, median (range) | times the loop | rows a step | tokens a row, padded "
        "| peak memory, MiB | risk after the steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        rates = sorted(m.rate for m in runs)
        middle = statistics.median(rates)
        memory = statistics.median(m.memory for m in runs)
        padded: float = LENGTH
        if name in OURS:
            plan = batches_of(case, typical(case, OURS[name], steps))
            padded = width(case, plan[1 : steps + 1])
        lines.append(
            f"| {name} | {middle:.1f} ({rates[0]:.1f} to {rates[-1]:.1f}) | {middle / base:.1f} "
            f"| {runs[0].rows:.0f} | {padded:.0f} | {memory:.0f} | {runs[0].risk:.5f} |"
        )
    gap = abs(found[RELEASED][0].risk - found["whet, the same batches, fp32"][0].risk)
    verdict = "equal" if gap <= 1e-3 else "NOT equal"
    lines += ["", f"Risk with the same batches in fp32: {verdict} to 1e-3 (off by {gap:.1e}).", ""]
    return lines


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shape", choices=SHAPES, default="4-layer")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    lines = [
        "# Fine-tuning: this project against a loop that does what the released code does",
        "",
        f"    python benchmarks/finetune.py --data DIR --out {options.out} --steps {options.steps}"
        f" --repeats {options.repeats} --threads {options.threads} --shape {options.shape}",
        "",
        f"{machine(options.threads)}, transformers {transformers.__version__}, Python "
        f"{platform.python_version()}. {options.repeats} repeats in turn. The script's docstring "
        "says what is measured and how.",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options.data, Path(folder), options.shape):
            found: dict[str, list[Measured]] = {}
            for _ in range(options.repeats):
                for name, settings in {RELEASED: None, **OURS}.items():
                    run = alone(case, settings, options.steps, options.threads)
                    found.setdefault(name, []).append(run)
                    sys.stderr.write(f"{case.name}: {name}: {run.rate:.1f} examples/s\n")
            lines += report(case, found, options.steps)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
