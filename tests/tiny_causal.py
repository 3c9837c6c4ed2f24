"""Causal language models of a few thousand weights that can say when they are done, and sums.

Import it after ``pytest.importorskip``: it needs the extra train.
"""

import numpy as np
import pyarrow as pa
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import tiny_models

#: One token each.
SIGNS = ["<pad>", "<unk>", "<s>", "</s>", *"0123456789+-=#? "]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}={{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a={% endif %}"
)


def save_causal(folder, seed=0, template=None, begin=False, **changes):
    """Save a small Llama with random weights and a tokenizer of single characters.

    ``template`` is a chat template, such as TEMPLATE; with ``begin`` the tokenizer puts <s> first.
    """
    torch.manual_seed(seed)
    signs = SIGNS if template is None else [*SIGNS, *"aus"]
    sizes = tiny_models.SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 128}
    sizes |= {"vocab_size": len(signs), "bos_token_id": 2, "eos_token_id": 3}
    sizes |= {"initializer_range": 0.2} | changes
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    model.save_pretrained(folder)
    tokens = Tokenizer(models.WordLevel({c: k for k, c in enumerate(signs)}, "<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokens.decoder = decoders.Fuse()
    if begin:
        tokens.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 2)]
        )
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)
    return str(folder)


def sums(n=40, seed=0):
    """Sums of two digits, right and wrong: prompt, completion, chosen, rejected."""
    pairs = np.random.default_rng(seed).integers(0, 10, (n, 2)).tolist()
    right = [f"{a + b}#" for a, b in pairs]
    return pa.table(
        {
            "prompt": [f"{a}+{b}=" for a, b in pairs],
            "completion": right,
            "chosen": right,
            "rejected": [f"{a}-{b}#" for a, b in pairs],
        }
    )


def as_messages(table):
    """The same rows as conversations."""
    roles = {"prompt": "user", "completion": "assistant", "chosen": "assistant"}
    roles["rejected"] = "assistant"
    return pa.table(
        {
            name: [[{"role": roles[name], "content": text}] for text in table[name].to_pylist()]
            for name in table.column_names
        }
    )
