"""Recipes of the ILR paper (Ye et al., ICLR 2025, arXiv 2501.07886), as its released code has them.

A recipe that says ``preset: NAME`` begins with these keys and changes what it names; ``data`` is
always its own. The paper reports its results in figures alone and leaves most settings to the code,
which has no licence file: these are numbers read there, no text of it.

From the released code: split in halves, LoRA (rank 64, alpha 128, all linear layers), bf16, batches
of 32, cosine with 5 % warm-up, epochs, learning rates and optimizers, alpha, number of rounds, the
sampling of demonstrations, proposals and pairs, the evaluator's data and training, set equality and
30 seconds for SQL, the median split of SaferPaca.

Not stated there or in the paper, and ours: most tokens of a row (1,024), no dropout in the adapters
and no weight decay.

Not reproduced: where the code says temperature 0 it searches with 4 beams, here the most probable
token is taken. The evaluator stops early in both (patience 1, the epoch with the least loss is
kept), there on a tenth of its rows, among which may be the other order of a comparison that is
trained on, here on a tenth of its prompts; another tenth measures it and is not trained on. The
checkpoints of the weak model are trained each on its own. Embeddings of OpenAI and GPT-4o on
SaferPaca are n-grams and phrase rules here; two weak models, one general and one for safety, whose
answers train the evaluator of SaferPaca, are one. ``docs/ilr.md`` says which slips of that code are
repeated.
"""

from __future__ import annotations

from typing import Any

GEMMA, MISTRAL, LLAMA = (
    "google/gemma-2b",
    "mistralai/Mistral-7B-v0.1",
    "meta-llama/Meta-Llama-3-70B",
)

#: Their weights, as their authors give them: to plan without a download.
WEIGHTS = {GEMMA: 2.51e9, MISTRAL: 7.24e9, LLAMA: 70.6e9}

#: Arms of the paper's main figure, with the slip in the scoring of DPO and without, and ours: a
#: second training on the same labels, and DPO on the very comparisons of ILR.
_ARMS: dict[str, Any] = dict.fromkeys(
    ("sft", "sft-again", "ilr", "naive", "dpo", "dpo-released", "dpo-originals", "gold")
)


def _paper(
    *,
    epochs: int = 2,
    temperature: float = 0.0,
    pairs_at: float = 0.7,
    tokens: int = 256,
    large: bool = False,
    weak: str = GEMMA,
) -> dict[str, Any]:
    """Return what the paper's settings share."""
    sft = {
        "learning_rate": 1e-4,
        "optimizer": "adafactor" if large else "adamw",
        "epochs": epochs,
        "batch_size": 32,
        "accumulate": 32,
        "max_length": 1024,
        "warmup": 0.05,
        "tune": "lora",
        "lora_rank": 64,
        "lora_alpha": 128,
        "precision": "bf16",
    }
    small = {"learning_rate": 5e-4 if weak == GEMMA else 1e-4, "optimizer": "adamw"}
    said = {"temperature": temperature, "max_new_tokens": tokens}
    return {
        "model": LLAMA if large else MISTRAL,
        "weak": {"model": weak, "train": small, "generate": said},
        "evaluator": {
            "model": MISTRAL if weak == MISTRAL else GEMMA,
            "train": {
                "tune": "full",
                "learning_rate": 1e-6,
                "epochs": 5,
                "batch_size": 16,
                "warmup": 0.05,
                "precision": "bf16",
                "validation": 0.1,
                "patience": 1,
            },
            "generate": {"temperature": 0.6, "max_new_tokens": tokens},
            "stages": 10,
            "rule": "paper",
        },
        "judge": "evaluator",
        "sft": sft,
        "propose": said,
        "dpo": {
            "train": {**sft, "learning_rate": 1e-6, "optimizer": "rmsprop", "beta": 0.1},
            "generate": {"temperature": pairs_at, "samples": 6, "max_new_tokens": tokens},
            "share": 0.15,
        },
        "evaluate": {"max_new_tokens": tokens},
        "rounds": 6,
        "alpha": 0.15,
        "arms": _ARMS,
    }


_GSM8K = {"task": "gsm8k", **_paper()}
#: Unreliable demonstrations, and judges that know what is right.
_ORACLE_ARMS: dict[str, Any] = dict.fromkeys(("sft", "oracle-ilr", "oracle-dpo", "gold"))

#: Name -> keys of a recipe.
PRESETS: dict[str, dict[str, Any]] = {
    "ilr-paper-gsm8k": _GSM8K,
    "ilr-paper-gsm8k-70b": {"task": "gsm8k", **_paper(large=True, weak=MISTRAL)},
    "ilr-paper-bird": {
        "task": "sql",
        "options": {"comparison": "set", "seconds": 30.0},
        **_paper(large=True),
    },
    "ilr-paper-saferpaca": {
        "task": "saferpaca",
        "options": {"quantile": 0.5},
        "test": "ilr_test",
        **_paper(epochs=4, temperature=1.0, pairs_at=1.0, tokens=512),
    },
    # The paper's study of the quality of supervision: "ora" has oracle comparisons, "corora" also
    # begins with the right demonstrations alone.
    "ilr-paper-gsm8k-ora": {**_GSM8K, "judge": "oracle", "arms": _ORACLE_ARMS},
    "ilr-paper-gsm8k-corora": {
        **_GSM8K,
        "weak": {**_GSM8K["weak"], "only_right": True},
        "judge": "oracle",
        "arms": _ORACLE_ARMS,
    },
}
