"""transformers' `generate` with its KV cache, on a Hugging Face folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import transformers
from protocol import serve
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria


class Clock(StoppingCriteria):
    """Notes the time after each token; stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Driver:
    def load(self, model: str, dtype: str, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        self.model.generation_config = transformers.GenerationConfig(
            do_sample=False, pad_token_id=0
        )
        about = {
            "version": transformers.__version__,
            "torch": torch.__version__,
            "dtype": dtype,
            "threads": threads,
            "attention": self.model.config._attn_implementation,
        }
        return {"about": about}

    def generate(self, prompts: list[list[int]], output_len: int) -> dict[str, Any]:
        if len({len(prompt) for prompt in prompts}) > 1:  # no padding: it would change the sums
            parts = [self.generate([prompt], output_len) for prompt in prompts]
            return {key: [part[key][0] for part in parts] for key in ("tokens", "times")}
        clock = Clock()
        begin = time.perf_counter()
        ids = torch.tensor(prompts)
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=output_len,
            stopping_criteria=[clock],
        )
        times = [moment - begin for moment in clock.times]
        return {
            "tokens": output[:, ids.shape[1] :].tolist(),
            "times": [times for _ in prompts],
        }

    def score(self, windows: list[list[int]]) -> dict[str, Any]:
        answer = []
        for window in windows:
            logprobs = self.model(torch.tensor([window])).logits[0, :-1].float().log_softmax(-1)
            answer.append(logprobs[torch.arange(len(window) - 1), window[1:]].tolist())
        return {"logprobs": answer}

    def write_checkpoint(self, source: str, target: str) -> dict[str, Any]:
        """Dequantise a GGUF into a float32 Hugging Face folder, with its tokenizer."""
        path = Path(source)
        read = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
        config = read.config
        if hasattr(config, "quantization_config"):  # its weights are plain numbers from here on
            del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(read.state_dict())
        plain.save_pretrained(target)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(target)
        return {}


if __name__ == "__main__":
    serve(Driver())
