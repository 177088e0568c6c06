"""How many answers keep their JSON schema: the default model, at temperature 1, on many schemas.

A schema is either refused before anything is generated, or its answer is checked by `jsonschema`.
What `max_tokens` cut short says so (finish_reason length) and counts as cut, not as wrong.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import jsonschema
from tests.grammar.schemas import UNSUPPORTED, schema

from benchmarks.report import save
from pellucid import AsyncLLM, EngineConfig, SamplingParams, StructuredOutputs
from pellucid.errors import BadRequest

NUM_SCHEMAS = 200
MAX_TOKENS = 400
QUESTION = "Invent an example. Answer with JSON that keeps this schema:\n"


async def outcome(llm: AsyncLLM, wanted: Any, seed: int) -> tuple[str, str]:
    """valid, cut, wrong or refused; and the answer."""
    prompt = await llm.chat_prompt([{"role": "user", "content": QUESTION + json.dumps(wanted)}])
    params = SamplingParams(
        temperature=1.0,
        max_tokens=MAX_TOKENS,
        seed=seed,
        structured_outputs=StructuredOutputs(json=wanted),
    )
    try:
        generation = await llm.submit(prompt, params)
    except BadRequest:
        return "refused", ""
    (answer,) = (await generation.result()).outputs
    if answer.finish_reason == "length":
        return "cut", answer.text
    try:
        jsonschema.validate(json.loads(answer.text), wanted)
    except (ValueError, jsonschema.ValidationError):
        return "wrong", answer.text
    return "valid" if answer.finish_reason == "stop" else "wrong", answer.text


async def run(num_schemas: int, **settings: Any) -> tuple[Counter[str], list[dict[str, Any]]]:
    """How often each outcome came, and the schemas that were accepted without a valid answer."""
    asked = [*map(schema, range(num_schemas)), *UNSUPPORTED]
    async with AsyncLLM(EngineConfig.of(**settings)) as llm:
        found = await asyncio.gather(*(outcome(llm, wanted, i) for i, wanted in enumerate(asked)))
    bad = [
        {"outcome": kind, "schema": wanted, "text": text}
        for wanted, (kind, text) in zip(asked, found, strict=True)
        if kind in ("cut", "wrong")
    ]
    return Counter(kind for kind, _ in found), bad


def main() -> None:
    counts, bad = asyncio.run(run(NUM_SCHEMAS))
    answered = counts["valid"] + counts["cut"] + counts["wrong"]
    print(
        f"{answered} answers: {counts['valid'] / answered:.1%} valid, {counts['cut']} cut by "
        f"max_tokens, {counts['wrong']} wrong; {counts['refused']} schemas refused at the start"
    )
    save(
        "structured_output",
        {"counts": counts, "valid_share": counts["valid"] / answered, "not_valid": bad},
        temperature=1.0,
        max_tokens=MAX_TOKENS,
        schemas=NUM_SCHEMAS,
        unsupported_schemas=len(UNSUPPORTED),
    )
