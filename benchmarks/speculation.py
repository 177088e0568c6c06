"""What prompt lookup gains on answers that repeat their prompt, and what it costs on others.

The default model, greedy, in process. Four kinds of requests, sixteen of each, whose texts are
taken from this repository: code to be changed, paragraphs to be copied, paragraphs to be summed up,
and questions to be answered freely. Each kind is answered one at a time and four at a time, with
and without drafts in turn; answers have to be equal.
"""

from __future__ import annotations

import ast
import statistics
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.fidelity_prompts import PROMPTS
from benchmarks.report import save
from pellucid.config import EngineConfig
from pellucid.engine.core import EngineCore
from pellucid.engine.drafting import Drafting
from pellucid.frontend.text import ModelText, load_text
from pellucid.load.hub import resolve
from pellucid.messages import AddRequest, pack_tokens
from pellucid.runner.factory import create_runner
from pellucid.sampling_params import SamplingParams

ROOT = Path(__file__).parents[1]
REQUESTS = 16  # of a kind
ANSWER_TOKENS = 192
STREAMS = (1, 4)
RUNS = 3
LENGTHS = range(300, 900)  # of what is put into a prompt, in characters


def functions() -> Iterator[str]:
    for path in sorted((ROOT / "src" / "pellucid" / "frontend").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                text = ast.get_source_segment(source, node) or ""
                if len(text) in LENGTHS:
                    yield text


def paragraphs() -> Iterator[str]:
    for path in sorted((ROOT / "docs").glob("*.md")):
        for text in path.read_text(encoding="utf-8").split("\n\n"):
            if len(text) in LENGTHS and text[0].isalpha():
                yield text


def requests() -> dict[str, list[str]]:
    """What is asked, by kind."""
    code, prose = list(islice(functions(), REQUESTS)), list(islice(paragraphs(), REQUESTS))
    return {
        "edit code": [f"Add a comment to this function:\n\n```python\n{t}\n```" for t in code],
        "copy": [f"Repeat this text word for word:\n\n{t}" for t in prose],
        "summarise": [f"Summarise this text in three sentences:\n\n{t}" for t in prose],
        "free": [f"Continue this text:\n\n{t}" for t in PROMPTS[:REQUESTS]],
    }


def prompts(text: ModelText, questions: list[str]) -> list[list[int]]:
    return [
        text.tokenizer.encode(
            text.render_chat([{"role": "user", "content": question}]), add_special_tokens=False
        )
        for question in questions
    ]


class Run:
    """All prompts of a kind, `streams` at a time."""

    def __init__(self, engine: EngineCore, waiting: list[list[int]], streams: int) -> None:
        self.answers: list[list[int]] = [[] for _ in waiting]
        self.drafted = self.accepted = self.steps = 0
        for name, prompt in enumerate(waiting):
            engine.add(
                AddRequest(
                    request_id=str(name),
                    prompt=pack_tokens(prompt),
                    sampling=SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0.0),
                    arrival_time=time.monotonic() + name,
                )
            )
        engine.scheduler.settings = EngineConfig.of(max_num_seqs=streams).scheduler
        begin = time.perf_counter()
        while engine.has_work:
            self._take(engine)
        self.seconds = time.perf_counter() - begin

    def _take(self, engine: EngineCore) -> None:
        output = engine.step()
        self.steps += 1
        self.drafted += sum(output.stats.drafted)
        self.accepted += sum(output.stats.accepted)
        for delta in output.deltas:
            self.answers[int(delta.request_id)] += delta.token_ids

    @property
    def tokens_per_s(self) -> float:
        return sum(map(len, self.answers)) / self.seconds


def compare(engine: EngineCore, drafting: Drafting, kind: list[list[int]], streams: int) -> Any:
    """Runs without and with drafts in turn: ratios within each pair."""
    ratios, plain, guessed = [], [], []
    for _ in range(RUNS):
        engine.scheduler.drafting = None
        plain.append(Run(engine, kind, streams))
        engine.scheduler.drafting = drafting
        guessed.append(Run(engine, kind, streams))
        if guessed[-1].answers != plain[-1].answers:
            raise SystemExit("an answer has changed")
        ratios.append(guessed[-1].tokens_per_s / plain[-1].tokens_per_s)
    last = guessed[-1]
    return {
        "plain_tokens_per_s": statistics.median(run.tokens_per_s for run in plain),
        "speculative_tokens_per_s": statistics.median(run.tokens_per_s for run in guessed),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "drafted_tokens": last.drafted,
        "accepted_tokens": last.accepted,
        "answer_tokens": sum(map(len, last.answers)),
        "steps": [plain[-1].steps, last.steps],
    }


def main() -> None:
    config = EngineConfig.of(max_num_seqs=max(STREAMS), prefix_caching=False, speculative="ngram")
    engine = EngineCore(create_runner(config), config.cache, config.scheduler)
    drafting = engine.scheduler.drafting
    assert drafting is not None
    text = load_text(resolve(config.model), config.model)
    results: dict[str, Any] = {}
    for name, questions in requests().items():
        kind = prompts(text, questions)
        for streams in STREAMS:
            found = results[f"{name}, {streams} at a time"] = compare(
                engine, drafting, kind, streams
            )
            print(
                f"{name:10} {streams}: {found['plain_tokens_per_s']:5.0f} ->"
                f" {found['speculative_tokens_per_s']:5.0f} tokens/s ({found['ratio']:.2f}x),"
                f" {found['accepted_tokens']} of {found['drafted_tokens']} drafts right,"
                f" {found['answer_tokens']} tokens"
            )
    settings = config.scheduler
    save(
        "speculation",
        results,
        requests=REQUESTS,
        answer_tokens=ANSWER_TOKENS,
        num_speculative_tokens=settings.num_speculative_tokens,
        speculative_step_tokens=settings.speculative_step_tokens,
        prompt_lookup=[settings.prompt_lookup_min, settings.prompt_lookup_max],
    )
