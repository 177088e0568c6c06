"""Requests made up by schemathesis from an OpenAPI document, and what their answers must be.

Every answer has a status, a content type and a body that the document describes, none is a 5xx,
what the document forbids is refused, and refusals name the field. Events of streams are checked one
by one, each by the schema of its kind.
"""

from __future__ import annotations

import json
import random
import re
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import jsonschema
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks

ERRORS = ("ErrorBody", "MessagesError", "OllamaError")
MAX_EVENTS = 1 << 20  # of one stream: all of it is read
TIMEOUT = 30  # seconds without an answer: the server hangs
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.negative_data_rejection,
]
BODY = checks.response_schema_conformance
MODES = {"valid": GenerationMode.POSITIVE, "invalid": GenerationMode.NEGATIVE}


@dataclass
class Report:
    """What came of the cases, by operation and kind of data."""

    num_cases: int = 0
    num_events: int = 0
    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  # what is wrong: one case of it


def fuzz(url: str, num_cases: int, seed: int = 0) -> Report:
    """Send at least `num_cases` requests, spread over all operations, valid data and invalid."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    schema.config.max_stream_events = MAX_EVENTS
    document: dict[str, Any] = dict(schema.raw_schema)
    operations = [result.ok() for result in schema.get_all_operations()]
    with urllib.request.urlopen(f"{url}/v1/models") as listing:
        model = json.load(listing)["data"][0]["id"]
    report = Report()
    runs = [(operation, mode) for operation in operations for mode in _modes(operation)]
    total = sum(_weight(operation) for operation, _ in runs)
    for operation, mode in runs:
        share = max(1, -(-num_cases * _weight(operation) // total))
        statuses = report.statuses.setdefault(f"{operation.label}, {mode} data", Counter())
        run = _runner(operation, MODES[mode], share, seed)
        run(lambda case, statuses=statuses: _try(case, url, model, document, report, statuses))
    return report


def _modes(operation: Any) -> tuple[str, ...]:
    return ("valid", "invalid") if operation.body else ("valid",)  # any text is an id


def _weight(operation: Any) -> int:
    """0: there is only one possible request."""
    return 10 if operation.body else int(bool(operation.path_parameters))


def _runner(operation: Any, mode: GenerationMode, num_cases: int, seed: int) -> Any:
    """Calls a function with `num_cases` cases; the same ones for the same seed."""

    def run(function: Any) -> None:
        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=num_cases,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def go(case: Any) -> None:
            function(case)

        go()

    return run


def _try(
    case: Any,
    url: str,
    model: str,
    document: dict[str, Any],
    report: Report,
    statuses: Counter[str],
) -> None:
    named = case.body.get("model") if isinstance(case.body, dict) else None
    if isinstance(named, str) and 0 < len(named) <= 256:  # other lengths are wrong somewhere
        case.body["model"] = model  # else most answers would be that there is no such model
    if case.meta.generation.mode is GenerationMode.POSITIVE and report.num_cases % 3:
        case.body = _leaner(case, document, random.Random(report.num_cases))
    report.num_cases += 1
    try:
        response = case.call(base_url=url, timeout=TIMEOUT)
    except Exception as error:  # no answer at all
        report.failures.setdefault(f"{case.operation.label}: {error!r}", case.as_curl_command())
        statuses["none"] += 1
        return
    statuses[str(response.status_code)] += 1
    problems: list[str] = []
    media_type = response.headers.get("content-type", [""])[0].partition(";")[0]
    streams = media_type in STREAMS
    if streams:
        success = case.operation.definition.raw["responses"]["200"]["content"]
        check = STREAMS[media_type]
        num_events, problems = check(success, response.text, document)
        report.num_events += num_events
    try:
        case.validate_response(response, checks=CHECKS if streams else [*CHECKS, BODY])
    except FailureGroup as group:
        problems += [f"{problem.title}: {problem.message}" for problem in group.exceptions]
    fields = case.body if isinstance(case.body, dict) else {}
    # A request may ask for a timeout that cannot be kept.
    if response.status_code >= 500 and not (response.status_code == 504 and "timeout" in fields):
        problems.append("a server error")
    if response.status_code == 400 and fields and _names_no_field(response.text):
        problems.append("a refusal that names no field")
    for problem in problems:
        key = f"{case.operation.label}: {response.status_code}: {problem}"
        report.failures.setdefault(key, f"{case.as_curl_command()}\n{response.text[:500]}")


def _names_no_field(text: str) -> bool:
    error = json.loads(text)["error"]
    return isinstance(error, dict) and error.get("param", "none in this shape") is None


def _leaner(case: Any, document: dict[str, Any], chance: random.Random) -> Any:
    """The body with few of its optional fields: the more there are, the surer two contradict."""
    body = case.body
    if not isinstance(body, dict):
        return body
    content = document["paths"][case.operation.path]["post"]["requestBody"]["content"]
    name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
    form = document["components"]["schemas"][name]
    kept = set(chance.sample(sorted(body), min(len(body), 3))) | set(form.get("required", ()))
    lean = {name: value for name, value in body.items() if name in kept}
    if "messages" in form["properties"] and "prompt" not in lean:
        lean["messages"] = [{"role": "user", "content": "Hi"}]
    return lean


def check_events(
    content: dict[str, Any], text: str, document: dict[str, Any]
) -> tuple[int, list[str]]:
    """How many events the stream `text` has, and what is wrong with them.

    The names of the schemas that an event may have stand in the description of the stream, in
    `content`, the media types of a successful answer.
    """
    about = content["text/event-stream"]["schema"]["description"]
    names, errors = _named(about, document)
    *events, end = text.split("\n\n")
    if end or not events:
        return 0, ["a stream does not end with an event"]
    *others, last = [event.partition("data: ")[2] for event in events]
    wrong = _misfits(others, names, document)
    if last != "[DONE]":  # then it must be an error, or an API's own last event
        wrong += _misfits([last], errors if "[DONE]" in about else names + errors, document)
    return len(events), wrong


def check_lines(
    content: dict[str, Any], text: str, document: dict[str, Any]
) -> tuple[int, list[str]]:
    """The same for a stream whose events are lines."""
    names, errors = _named(content["application/x-ndjson"]["schema"]["description"], document)
    *lines, end = text.split("\n")
    if end or not lines:
        return 0, ["a stream does not end with a line"]
    wrong = _misfits(lines[:-1], names, document) + _misfits(lines[-1:], names + errors, document)
    return len(lines), wrong


STREAMS = {"text/event-stream": check_events, "application/x-ndjson": check_lines}


def _named(about: str, document: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The schemas that a description names, and those of errors."""
    schemas = document["components"]["schemas"]
    names = [name for name in schemas if re.search(rf"\b{name}\b", about)]
    return names, [name for name in ERRORS if name in schemas]


def _misfits(events: list[str], names: list[str], document: dict[str, Any]) -> list[str]:
    refs = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    schema = {"anyOf": refs, "components": document["components"]}
    validator = jsonschema.Draft202012Validator(schema)
    wrong = []
    for event in dict.fromkeys(events):
        try:
            error = next(validator.iter_errors(json.loads(event)), None)
        except ValueError:
            wrong.append(f"an event is not JSON: {event[:200]}")
        else:
            wrong += [f"an event is none of {names}: {event[:200]}"] if error else []
    return wrong
