"""Language models of a few thousand weights, and a corpus that they can learn.

Import it after ``pytest.importorskip``: it needs the extra train.
"""

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ["<pad>", "<unk>", "<s>", *(f"w{k}" for k in range(60))]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LLAMA = {"num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 1, "initializer_range": 0.2}


def save_model(folder, kind="llama", **changes):
    """Save a small language model with random weights and a tokenizer of words."""
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(**(SIZES | LLAMA | changes))
        model = transformers.LlamaForCausalLM(config)
    elif kind == "bert":
        model = transformers.BertModel(transformers.BertConfig(**(SIZES | changes)))
    elif kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=len(WORDS), n_positions=64, n_embd=32, n_layer=1, n_head=2, eos_token_id=1
        )
        model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    tokens = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, "<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="<unk>", bos_token="<s>", pad_token="<pad>"
    )
    wrapped.save_pretrained(folder)
    return str(folder)


def corpus(n=60, seed=0):
    """Texts in which the words of class 0 are w0 to w9, those of class 1 w10 to w19."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    texts = []
    for y in truth:
        telling = rng.integers(0, 10, 4) + 10 * y
        other = rng.integers(20, 60, rng.integers(1, 20))
        texts.append(" ".join(f"w{k}" for k in rng.permutation([*telling, *other])))
    return texts, truth
