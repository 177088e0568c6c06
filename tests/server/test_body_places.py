"""What no field may hold, tried at every place of every body in the OpenAPI document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.server.live import Live
from tests.server.places import Document, Place

NUMBERS = {"integer", "number"}
# JSON text, and the kinds that it is none of. A number that is no JSON suits nothing.
WRONG: dict[str, set[str]] = {
    "NaN": NUMBERS,
    "Infinity": NUMBERS,
    "-Infinity": NUMBERS,
    "1e400": NUMBERS,
    "-1e400": NUMBERS,
    "9" * 400: NUMBERS,
    "-3": NUMBERS,
    "1e308": NUMBERS,
    str(2**63): NUMBERS,
    str(2**64): NUMBERS,
    str(-(2**63) - 1): NUMBERS,
    "1.5": {"integer"},
    "true": NUMBERS,
    '"1"': NUMBERS,
    "[]": NUMBERS,
    "{}": NUMBERS,
}
# Values from the above that do have a meaning somewhere.
RIGHT = {
    ("-3", "seed"),
    ("-3", "logit_bias"),
    ("-3", "options.seed"),
    ("1e308", "timeout"),  # the configured limit holds
    (str(2**63), "timeout"),
    (str(2**64), "timeout"),
}
# Where any number will do: what changes no answer of Ollama's API, and how long a model stays.
ANY_NUMBER = re.compile(
    r"/api/embed\w*:options\.(?!num_ctx)\w+|.*:keep_alive|.*:options\."
    r"(draft_num_predict|main_gpu|mirostat_eta|mirostat_tau|num_batch|num_gpu|num_keep|num_thread)"
)
BOOLEAN, STRING = {"1": {"boolean"}, '"true"': {"boolean"}}, {"1": {"string"}, "true": {"string"}}


@pytest.fixture(scope="module")
def places(site: Live) -> list[Place]:
    return list(Document(site.http.get("/openapi.json").json()).places())


def fault(site: Live, place: Place, value: str, *, path: str = "") -> str | None:
    """What is wrong with the answer to `value` at its place, which should be a refusal."""
    response = site.http.post(
        place.route, content=place.raw(value), headers={"Content-Type": "application/json"}
    )
    about = f"{place} = {value[:40]}: {response.status_code} {response.text[:200]}"
    if response.status_code != 400:
        return about
    path = path or place.path
    error = response.json()["error"]  # other APIs' errors are a text, or have no param
    message = error if isinstance(error, str) else error["message"]
    if isinstance(error, dict) and "param" in error:
        # An entry may be named, or the list or object that it is in.
        named, digits = error["param"] or "", "[.]0123456789"
        if named.rstrip(digits) != path.rstrip(digits):
            return about
    field = path.rpartition(".")[2].partition("[")[0]
    return None if field in message else about


def faults(site: Live, places: list[Place], wrong: dict[str, set[str]]) -> Iterator[str]:
    for value, kinds in wrong.items():
        for place in places:
            suits = place.kinds - kinds - {"null"}
            if not place.kinds & kinds or suits & _kinds_of(value):
                continue
            if (value, place.path) in RIGHT or _any_will_do(place, value):
                continue
            if found := fault(site, place, value):
                yield found


def _any_will_do(place: Place, value: str) -> bool:
    fits = "integer" not in place.kinds or "number" in place.kinds or value == "-3"
    is_finite = value.lstrip("-").isdigit() or value == "1e308"
    return fits and is_finite and ANY_NUMBER.fullmatch(str(place)) is not None


def _kinds_of(value: str) -> set[str]:
    first = {'"': "string", "[": "array", "{": "object", "t": "boolean"}.get(value[0])
    return {first} if first else NUMBERS if value[0].isdigit() else set()


@pytest.mark.parametrize("value", WRONG, ids=lambda value: value[:24])
def test_no_number_is_taken_for_another(site: Live, places: list[Place], value: str) -> None:
    assert list(faults(site, places, {value: WRONG[value]})) == []


def test_other_types_are_not_converted(site: Live, places: list[Place]) -> None:
    assert list(faults(site, places, BOOLEAN | STRING)) == []


def test_unknown_fields_are_refused_at_every_level(site: Live, places: list[Place]) -> None:
    tried = set()
    for place in places:
        for least in place.objects:
            name = f"{place.path}.temprature" if place.path else "temprature"
            value = json.dumps({"temprature": 1, **least})
            assert fault(site, place, value, path=name) is None
            tried.add(str(place))
    assert {"/v1/completions:", "/v1/chat/completions:messages[0].content[0]"} <= tried
