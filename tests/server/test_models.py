"""Several models in one server: who is loaded when, who goes, and who notices."""

from __future__ import annotations

from tests.server.live import Live, live

TEXT = "/v1/completions"


def states(site: Live) -> dict[str, str]:
    listed = site.http.get("/v1/models").json()["data"]
    return {model["id"]: model["status"] for model in listed}


def test_requests_go_to_the_model_they_name_which_is_loaded_for_them() -> None:
    with live(models=("a", "b")) as site:
        assert states(site) == {"a": "loaded", "b": "unloaded"}
        assert site.post(TEXT, prompt="x", max_tokens=1).json()["model"] == "a"
        assert states(site) == {"a": "loaded", "b": "unloaded"}
        assert site.post(TEXT, model="b", prompt="x", max_tokens=1).json()["model"] == "b"
        assert states(site) == {"a": "loaded", "b": "loaded"}
        for name in ("a", "b"):
            assert site.metric("vllm:request_success_total", model_name=name) == 0
            assert site.metric("vllm:generation_tokens_total", model_name=name) == 1
