"""The default model's real file: greedy answers against transformers, token for token.

The weights of the oracle come from the `gguf` package's own reader and dequantisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pellucid.kernels.reference import ReferenceOps
from pellucid.load.files import ModelFiles
from pellucid.load.model_config import load_config
from pellucid.load.weights import open_weights
from pellucid.models.registry import build_model
from tests.models.stepping import Stepper

ANSWER = 48  # tokens
CLOSE = 1e-3  # two best logits as near as this may swap: the two sums round differently
PROMPT_LENGTHS = (6, 13, 24, 60)
TEXTS = (
    "The sun rose over the harbour and the fishermen untied their boats, one after another,",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Water boils at a lower temperature on a mountain because the air pressure there is",
    "Dear Mrs Alder, thank you for your letter of the third of May. I am writing to",
    "Question: which planet has the most moons? Answer: the planet with the most known moons",
)


@dataclass
class Answer:
    tokens: list[int]
    gaps: list[float]  # between the two best logits, at each token


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small products on several threads crawl when something else wants a core too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reader(smollm2_path: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(smollm2_path)


@pytest.fixture(scope="module")
def oracle(reader: gguf.GGUFReader) -> LlamaForCausalLM:
    config = _config(reader)
    model = LlamaForCausalLM(config)
    weights = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        name = _hf_name(tensor.name)
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for projection, count in heads.items():
            if projection in name:  # rows of a head stand in interleaved pairs
                pairs = values.reshape(count, -1, 2, values.shape[-1])
                values = pairs.swapaxes(1, 2).reshape(values.shape)
        weights[name] = torch.from_numpy(np.array(values, dtype=np.float32))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    return model.eval()


def _config(reader: gguf.GGUFReader) -> LlamaConfig:
    def value(key: str) -> int | float:
        return reader.fields[f"llama.{key}"].contents()

    return LlamaConfig(
        vocab_size=value("vocab_size"),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        tie_word_embeddings=True,
    )


def _hf_name(name: str) -> str:
    top = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
    if name in top:
        return f"model.{top[name]}"
    _, layer, part, _ = name.split(".")
    long = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }[part]
    return f"model.layers.{layer}.{long}.weight"


def _prompts(reader: gguf.GGUFReader) -> list[list[int]]:
    """Texts as the ids of whole pieces of the file's vocabulary, cut or repeated to lengths."""
    pieces = reader.fields["tokenizer.ggml.tokens"].contents()
    ids = {piece: number for number, piece in enumerate(pieces)}
    prompts = []
    for text in TEXTS:
        marked, tokens = text.replace(" ", "Ġ").replace("\n", "Ċ"), []
        while marked:
            size = next(n for n in range(len(marked), 0, -1) if marked[:n] in ids)
            tokens.append(ids[marked[:size]])
            marked = marked[size:]
        prompts += [(tokens * length)[:length] for length in PROMPT_LENGTHS]
    return prompts


def _record(answer: Answer, logits: Tensor) -> None:
    best = logits.topk(2)
    answer.tokens.append(int(best.indices[0]))
    answer.gaps.append(float(best.values[0] - best.values[1]))


@torch.inference_mode()
def _theirs(model: LlamaForCausalLM, prompts: list[list[int]]) -> list[Answer]:
    """Prompts of one length each make a batch, so that nothing needs padding."""
    answers = [Answer([], []) for _ in prompts]
    for length in PROMPT_LENGTHS:
        members = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        step, cache = torch.tensor([prompts[i] for i in members]), None
        for _ in range(ANSWER):
            out = model(step, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            for i, logits in zip(members, out.logits[:, -1], strict=True):
                _record(answers[i], logits)
            step = torch.tensor([[answers[i].tokens[-1]] for i in members])
    return answers


def _ours(path: Path, prompts: list[list[int]]) -> list[Answer]:
    """All prompts in one batch, by the loader, the model and the kernels under test."""
    files = ModelFiles("gguf", path, "smollm2")
    config = load_config(files)
    weights = open_weights(files, config)
    model = build_model(config, weights, ReferenceOps(), torch.float32, torch.device("cpu"), 256)
    sequences = [list(prompt) for prompt in prompts]
    stepper = Stepper(model, sequences, torch.float32, room=ANSWER)
    answers = [Answer([], []) for _ in prompts]
    counts = {i: len(prompt) for i, prompt in enumerate(prompts)}
    for _ in range(ANSWER):
        for i, logits in enumerate(stepper.step(counts)):
            _record(answers[i], logits[-1])
            sequences[i].append(answers[i].tokens[-1])
        counts = dict.fromkeys(counts, 1)
    return answers


@pytest.mark.model
@pytest.mark.slow
def test_greedy_answers_equal_transformers(
    oracle: LlamaForCausalLM, reader: gguf.GGUFReader, smollm2_path: Path
) -> None:
    prompts = _prompts(reader)
    assert len(prompts) == 20
    expected, actual = _theirs(oracle, prompts), _ours(smollm2_path, prompts)
    compared = 0
    for prompt, (their, our) in enumerate(zip(expected, actual, strict=True)):
        same = [a == b for a, b in zip(their.tokens, our.tokens, strict=True)]
        split = same.index(False) if False in same else ANSWER
        compared += split
        if split < ANSWER:
            assert min(their.gaps[split], our.gaps[split]) < CLOSE, (prompt, split)
    assert compared > 0.9 * 20 * ANSWER
