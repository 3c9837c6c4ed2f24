"""How much of the device's arithmetic fine-tuning and scoring use (model FLOPs utilisation).

    python benchmarks/utilisation.py --shape 1b --out benchmarks/results/utilisation.md

Random weights and random tokens: only shapes matter. LoRA of rank 8 beside all linear layers, bf16,
texts of 512 tokens (no padding) and of 16 to 160 tokens in buckets (padding counts as time, not as
work). Work is counted as usual: a token costs ``2 N + 2 L s d`` operations forward (N: weights of
linear layers, L: layers, s: text length, d: width; attention looks back only), and training with
frozen weights costs twice that, since no gradient of frozen weights is needed. The peak is what a
large matrix product in bf16 reaches on the same device in the same process. The last table is
torch's profile of three training steps. Target at the 1B shape, on a GPU: 45 % of the peak for
training, 55 % for scoring.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from whet.classify.risks import Risk
from whet.finetune.settings import Settings
from whet.finetune.tokens import Tokens
from whet.finetune.trainer import FineTuner, Tuned

#: Width, width of the MLP, layers, heads, heads of keys and values, vocabulary.
SHAPES = {
    "tiny": (256, 688, 4, 4, 2, 4096),
    "1b": (2048, 8192, 16, 32, 8, 128256),
}


class Enough(Exception):
    """The steps are done."""


def save_model(shape: str, folder: Path) -> None:
    """Save a Llama of the shape with random weights in bf16."""
    width, mlp, layers, heads, kv, words = SHAPES[shape]
    config = transformers.LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        dtype="bfloat16",
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)


def work(shape: str, lengths: np.ndarray) -> float:
    """Return the operations of one forward pass over texts of these lengths."""
    width, mlp, layers, heads, kv, _ = SHAPES[shape]
    weights = layers * width * (2 * width + 2 * width * kv // heads + 3 * mlp)
    tokens = lengths.astype(np.float64)
    return float((2 * weights * tokens + 2 * layers * width * tokens**2).sum())


def clock() -> float:
    """Return the time when all work is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak(device: torch.device) -> float:
    """Return the operations a second of a large product in bf16."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device).to(torch.bfloat16)
    best = 0.0
    for _ in range(10):
        began = clock()
        a @ a
        best = max(best, 2 * n**3 / (clock() - began))
    return best


def texts(kind: str, n: int, words: int) -> Tokens:
    """Return random texts."""
    rng = np.random.default_rng(0)
    lengths = np.full(n, 512) if kind == "512 tokens" else rng.integers(16, 161, n)
    rows = [rng.integers(3, words, length).tolist() for length in lengths]
    return Tokens.from_lists(rows, pad=0)


def train(tuner: FineTuner, tokens: Tokens, steps: int) -> tuple[float, int]:
    """Return seconds and rows of some steps after the first two."""
    n = len(tokens)
    times: list[float] = []
    done = 0

    def count(stage: str, step: int, total: int) -> None:
        nonlocal done
        del stage
        if step == 2:
            times.append(clock())
        if step == min(steps + 2, total):
            times.append(clock())
            done = step - 2
            raise Enough

    with contextlib.suppress(Enough):
        tuner.fit(tokens, np.arange(n), np.arange(n) % 2, Risk.pn([0.5, 0.5]), progress=count)
    return times[1] - times[0], done


def profile(tuner: FineTuner, tokens: Tokens) -> str:
    """Return the ten kinds of operation that took longest in three steps."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    key = "self_cpu_time_total"
    if torch.cuda.is_available():
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
        key = "self_cuda_time_total"
    with torch.profiler.profile(activities=kinds) as profiler:
        train(tuner, tokens, 1)
    return str(profiler.key_averages().table(sort_by=key, row_limit=10, max_name_column_width=40))


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens-per-batch", type=int, default=16384)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    most = peak(device)
    lines = [
        "# Utilisation",
        "",
        f"    python benchmarks/utilisation.py --shape {options.shape} --steps {options.steps} "
        f"--tokens-per-batch {options.tokens_per_batch} --out {options.out}",
        "",
        f"{name}, torch {torch.__version__}, {torch.get_num_threads()} CPU thread(s). Peak of a "
        f"product in bf16: {most / 1e12:.2f} Tflop/s.",
        "",
        "| texts | what | tokens/s | Tflop/s | share of the peak |",
        "|---|---|---|---|---|",
    ]
    settings = Settings(
        precision="bf16",
        tokens_per_batch=options.tokens_per_batch,
        validation=None,
        epochs=1,
        lora_dropout=0.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        save_model(options.shape, Path(folder))
        tuner = FineTuner(folder, settings)
        for kind, mean in (("512 tokens", 512), ("16 to 160 tokens", 88)):
            n = (options.steps + 3) * options.tokens_per_batch // mean
            tokens = texts(kind, n, SHAPES[options.shape][-1])
            a_row, words = work(options.shape, tokens.lengths) / n, float(tokens.lengths.mean())
            seconds, steps = train(tuner, tokens, options.steps)
            rows = steps * options.tokens_per_batch / mean
            lines.append(
                _line(kind, "training, LoRA", 2 * rows * a_row, rows * words, seconds, most)
            )
            network = tuner.network(2)
            tuned = Tuned(network, tuner.processes, network.snapshot(), [])
            tuned.logits(tokens, np.arange(min(64, n)))
            began = clock()
            tuned.logits(tokens)
            lines.append(_line(kind, "scoring", n * a_row, n * words, clock() - began, most))
        lines += ["", "```text", profile(tuner, tokens), "```"]
    if torch.cuda.is_available():
        lines += ["", f"Peak memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB."]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n")


def _line(
    kind: str, what: str, operations: float, tokens: float, seconds: float, most: float
) -> str:
    rate: Any = operations / seconds
    return f"| {kind} | {what} | {tokens / seconds:,.0f} | {rate / 1e12:.3f} | {rate / most:.0%} |"


if __name__ == "__main__":
    main()
