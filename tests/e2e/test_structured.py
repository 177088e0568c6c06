"""The real small model: schemas kept at temperature 1, tools called, the docs' examples run."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from benchmarks.structured_output import run

from pellucid import LLM, SamplingParams, StructuredOutputs
from pellucid.config import EngineConfig, ServerConfig
from pellucid.engine.client import InProcessClient
from pellucid.frontend.text import load_text
from pellucid.load.hub import resolve
from tests.grammar.schemas import UNSUPPORTED, schema
from tests.server.live import Live, live

pytestmark = pytest.mark.model
DOCS = Path(__file__).parents[2] / "docs"
SMALL = {"num_kv_blocks": 512, "max_num_seqs": 16}


def test_schemas_are_kept_or_refused_at_the_start(smollm2_path: Path) -> None:
    counts, bad = asyncio.run(run(20, model=str(smollm2_path), **SMALL))
    assert counts["wrong"] == 0, bad
    assert counts["refused"] == len(UNSUPPORTED)
    assert counts["valid"] >= 17


def test_company_and_preemption_change_no_token(smollm2_path: Path) -> None:
    params = [
        SamplingParams(
            max_tokens=60, seed=i, logprobs=0, structured_outputs=StructuredOutputs(json=schema(i))
        )
        for i in range(6)
    ]
    free = SamplingParams(max_tokens=60, seed=1, logprobs=0)
    prompts = [f"Example {i} as JSON:\n" for i in range(6)] + ["Once upon a time"]
    settings = {"max_chunk_tokens": 5, "block_size": 4, "num_kv_blocks": 40, "max_model_len": 160}
    with LLM(str(smollm2_path), **SMALL) as llm:
        alone = [
            llm.generate(prompt, one, use_progress_bar=False)[0].outputs[0]
            for prompt, one in zip(prompts, [*params, free], strict=True)
        ]
    with LLM(str(smollm2_path), max_num_seqs=16, **settings) as llm:
        together = llm.generate(prompts, [*params, free], use_progress_bar=False)
    preemptions = [o.outputs[0].times.num_preemptions for o in together if o.outputs[0].times]
    assert sum(preemptions) > 0
    for one, other in zip(alone, together, strict=True):
        assert other.outputs[0].token_ids == one.token_ids
        assert other.outputs[0].logprobs == one.logprobs


@pytest.fixture(scope="module")
def site(smollm2_path: Path) -> Iterator[Live]:
    config = EngineConfig.of(model=str(smollm2_path), **SMALL)
    text = load_text(resolve(config.model), config.model)
    with live(ServerConfig(), InProcessClient.from_config(config), text=text) as running:
        yield running


@pytest.mark.parametrize("page", ["structured-output.md", "tools.md"])
def test_the_examples_of_the_docs_run(site: Live, page: str) -> None:
    (example,) = re.findall("```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    code = example.replace("http://127.0.0.1:8000", site.url)
    code = code.replace("smollm2-135m", site.llm.model_name)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_required_call_of_a_real_model(site: Live) -> None:
    tool: Any = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 20}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    done = site.openai().chat.completions.create(
        model=site.llm.model_name,
        messages=[{"role": "user", "content": "How warm is it in Rome?"}],
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
    )
    (call,) = done.choices[0].message.tool_calls or []
    assert call.type == "function"
    jsonschema.validate(json.loads(call.function.arguments), tool["function"]["parameters"])
    assert done.choices[0].finish_reason == "tool_calls"
