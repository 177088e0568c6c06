"""The server keeps to its own OpenAPI document; `python -m benchmarks api_fuzz` tries more."""

from __future__ import annotations

from benchmarks.api_cases import check_events, fuzz

from tests.server.live import live

ROUTES = (
    *("/v1/chat/completions", "/v1/completions", "/generate", "/apply-template"),
    *("/v1/responses", "/v1/messages", "/api/chat", "/api/generate", "/api/embed"),
)
NUM_CASES = 500


def test_answers_are_what_the_document_says() -> None:
    with live(policy="priority") as site:
        # Of valid data few bodies pass what a document cannot say: with one seed, sometimes none.
        reports = [fuzz(site.url, NUM_CASES, seed) for seed in range(3)]
    for report in reports:
        assert report.failures == {}
        assert report.num_cases >= NUM_CASES
        assert report.num_events > 20
        for route in ROUTES:
            assert report.statuses[f"POST {route}, invalid data"].keys() == {"400"}
    for route in ROUTES:
        assert sum(each.statuses[f"POST {route}, valid data"]["200"] for each in reports) > 0


def test_streams_are_looked_at_event_by_event() -> None:
    with live() as site:
        document = site.http.get("/openapi.json").json()
        text = site.post("/generate", prompt="x", max_tokens=3).text
    about = document["paths"]["/generate"]["post"]["responses"]["200"]["content"]
    assert check_events(about, text, document) == (5, [])
    for wrong, problem in (
        (text.replace('"token":', '"tokens":'), "is none of"),
        (text.replace("data: [DONE]\n\n", ""), "is none of ['ErrorBody'"),
        (text.replace('{"token"', '{"token'), "not JSON"),
        (text.removesuffix("\n\n"), "does not end"),
    ):
        assert problem in " ".join(check_events(about, wrong, document)[1])
