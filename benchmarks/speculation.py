"""What speculation gains on answers that repeat their prompt, and what it costs on others.

The default model, greedy, in process. Four kinds of requests, sixteen of each, whose texts are
taken from this repository: code to be changed, paragraphs to be copied, paragraphs to be summed up,
and questions to be answered freely. Each kind is answered one at a time and four at a time, with
and without drafts in turn; answers have to be equal.

`--model BIG --draft-model SMALL` compares no drafts, prompt lookup, the draft model and, as it is
served, whichever of the two promises more, on fewer and shorter answers; `--kind` and `--streams`
measure a part, which is merged into its result file.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.fidelity_prompts import PROMPTS
from benchmarks.report import RESULTS, save
from pellucid.config import EngineConfig
from pellucid.engine.core import EngineCore
from pellucid.engine.drafting import Drafting
from pellucid.frontend.text import ModelText, load_text
from pellucid.load.hub import resolve
from pellucid.messages import AddRequest, EngineInfo, pack_tokens
from pellucid.runner.factory import create_runner
from pellucid.runner.torch_runner import TorchRunner
from pellucid.sampling_params import SamplingParams
from pellucid.spec.drafter import Drafter
from pellucid.spec.either import Either

ROOT = Path(__file__).parents[1]
STREAMS = (1, 4, 16)
RUNS = 3
STANDSTILL = 8.0  # seconds that no step takes: whoever shares the machine stopped us
MODEL_LEN = 2048
Prompts = list[list[int]]


class Size(NamedTuple):
    requests: int  # of a kind
    answer_tokens: int


LARGE = Size(16, 192)
SMALL = Size(4, 64)  # for models that take minutes else

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


def requests(count: int) -> dict[str, list[str]]:
    """What is asked, by kind."""
    code, prose = list(islice(functions(), count)), list(islice(paragraphs(), count))
    return {
        "edit code": [f"Add a comment to this function:\n\n```python\n{t}\n```" for t in code],
        "copy": [f"Repeat this text word for word:\n\n{t}" for t in prose],
        "summarise": [f"Summarise this text in three sentences:\n\n{t}" for t in prose],
        "free": [f"Continue this text:\n\n{t}" for t in PROMPTS[:count]],
    }


def prompts(text: ModelText, questions: list[str]) -> Prompts:
    return [
        text.tokenizer.encode(
            text.render_chat([{"role": "user", "content": question}]), add_special_tokens=False
        )
        for question in questions
    ]


class Run:
    """All prompts of a kind, `streams` at a time."""

    def __init__(
        self, engine: EngineCore, waiting: Prompts, streams: int, answer_tokens: int
    ) -> None:
        self.answers: list[list[int]] = [[] for _ in waiting]
        self.drafted = self.accepted = self.steps = 0
        self.draft_seconds = self.longest_step = 0.0
        for name, prompt in enumerate(waiting):
            engine.add(
                AddRequest(
                    request_id=str(name),
                    prompt=pack_tokens(prompt),
                    sampling=SamplingParams(max_tokens=answer_tokens, temperature=0.0),
                    arrival_time=time.monotonic() + name,
                )
            )
        engine.scheduler.settings = EngineConfig.of(max_num_seqs=streams).scheduler
        begin = time.perf_counter()
        while engine.has_work:
            self._take(engine)
        self.seconds = time.perf_counter() - begin

    def _take(self, engine: EngineCore) -> None:
        begin = time.perf_counter()
        output = engine.step()
        self.longest_step = max(self.longest_step, time.perf_counter() - begin)
        self.steps += 1
        self.drafted += sum(output.stats.drafted)
        self.accepted += sum(output.stats.accepted)
        self.draft_seconds += output.stats.draft_seconds
        for delta in output.deltas:
            self.answers[int(delta.request_id)] += delta.token_ids

    @property
    def tokens_per_s(self) -> float:
        return sum(map(len, self.answers)) / self.seconds


def compare(
    engine: EngineCore, draftings: dict[str, Drafting], size: Size, streams: int, kind: Prompts
) -> dict[str, Any]:
    """Runs without drafts and with each kind of them in turn: ratios within each round."""
    runs: dict[str, list[Run]] = {name: [] for name in ("none", *draftings)}
    for _ in range(RUNS):
        for name, done in runs.items():
            engine.scheduler.drafting = draftings.get(name)
            done.append(undisturbed(engine, kind, streams, size.answer_tokens))
            if done[-1].answers != runs["none"][-1].answers:
                raise SystemExit("an answer has changed")
    plain = runs["none"]
    return {name: gain(plain, runs[name]) for name in draftings}


def undisturbed(engine: EngineCore, kind: Prompts, streams: int, answer_tokens: int) -> Run:
    while True:
        run = Run(engine, kind, streams, answer_tokens)
        if run.longest_step < STANDSTILL:
            return run


def gain(plain: list[Run], guessed: list[Run]) -> dict[str, Any]:
    last = guessed[-1]
    ratios = [g.tokens_per_s / p.tokens_per_s for g, p in zip(guessed, plain, strict=True)]
    found = {
        "plain_tokens_per_s": statistics.median(run.tokens_per_s for run in plain),
        "speculative_tokens_per_s": statistics.median(run.tokens_per_s for run in guessed),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "drafted_tokens": last.drafted,
        "accepted_tokens": last.accepted,
        "answer_tokens": sum(map(len, last.answers)),
        "steps": [plain[-1].steps, last.steps],
    }
    if last.draft_seconds > 0.01 * last.seconds:
        found["seconds"] = [plain[-1].seconds, last.seconds]
        found["draft_seconds"] = last.draft_seconds
    return found


def tell(what: str, found: dict[str, Any]) -> None:
    print(
        f"{what}: {found['plain_tokens_per_s']:5.1f} -> {found['speculative_tokens_per_s']:5.1f}"
        f" tokens/s ({found['ratio']:.2f}x), {found['accepted_tokens']} of"
        f" {found['drafted_tokens']} drafts right, {found['answer_tokens']} tokens",
        flush=True,
    )


def main(*arguments: str) -> None:
    options = _options(arguments)
    drafts = {"speculative": "ngram"}
    if options.draft_model is not None:
        drafts = {"speculative": "draft", "draft_model": options.draft_model}
    config = EngineConfig.of(
        model=options.model,
        max_num_seqs=max(STREAMS),
        max_model_len=MODEL_LEN,
        prefix_caching=False,
        **drafts,
    )
    runner = create_runner(config)
    assert isinstance(runner, TorchRunner)
    engine = EngineCore(runner, config.cache, config.scheduler)
    drafters, size = {"ngram": runner.drafter}, LARGE
    if isinstance(runner.drafter, Either):
        lookup, draft = runner.drafter.lookup, runner.drafter.model
        drafters, size = {"ngram": lookup, "draft": draft, "both": runner.drafter}, SMALL
    draftings = {name: _drafting(drafter, config) for name, drafter in drafters.items()}
    text = load_text(resolve(config.model), config.model)
    results: dict[str, Any] = {}
    for name, questions in requests(size.requests).items():
        for streams in STREAMS:
            if options.kind in (None, name) and options.streams in (None, streams):
                kind = prompts(text, questions)
                found = compare(engine, draftings, size, streams, kind)
                results[f"{name}, {streams} at a time"] = found
                for drafter, gained in found.items():
                    tell(f"{name:10} {streams} {drafter:5}", gained)
    _save(results, config, size, engine.info)


def _drafting(drafter: Drafter | None, config: EngineConfig) -> Drafting:
    drafting = Drafting.from_settings(config.scheduler, drafter)
    assert drafting is not None
    return drafting


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks speculation")
    parser.add_argument("--model", default=EngineConfig().model.model)
    parser.add_argument("--draft-model")
    parser.add_argument("--kind", choices=requests(1))
    parser.add_argument("--streams", type=int, choices=STREAMS)
    return parser.parse_args(arguments)


def _save(results: dict[str, Any], config: EngineConfig, size: Size, info: EngineInfo) -> None:
    settings = config.scheduler
    told = {
        "requests": size.requests,
        "answer_tokens": size.answer_tokens,
        "num_speculative_tokens": settings.num_speculative_tokens,
        "speculative_step_tokens": settings.speculative_step_tokens,
        "prompt_lookup": [settings.prompt_lookup_min, settings.prompt_lookup_max],
    }
    if not info.draft_model:
        save("speculation", {name: found["ngram"] for name, found in results.items()}, **told)
        return
    told |= {"model": info.model, "draft_model": info.draft_model, "draft_cost": info.draft_cost}
    file = RESULTS / "speculation_draft.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    chosen = told.keys() - {"draft_cost"}  # that one is measured
    same = all(before.get("settings", {}).get(name) == told[name] for name in chosen)
    merged = {**(before["results"] if same else {}), **results}
    save("speculation_draft", merged, "speculation --model ... --draft-model ...", **told)
