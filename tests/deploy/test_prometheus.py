"""The real Prometheus scrapes a server under load; the board and the alerts find their data."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.server.live import Live, eventually, live

DEPLOY = Path(__file__).parents[2] / "deploy"
BOARD = json.loads((DEPLOY / "grafana" / "pellucid.json").read_text())
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
WINDOW = "10s"  # for all ranges: the test cannot wait for minutes

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="Prometheus is not installed (on Debian: apt-get install prometheus)",
)


def board_expressions() -> list[tuple[str, str]]:
    return [
        (panel["title"], target["expr"])
        for panel in BOARD["panels"]
        for target in panel.get("targets", [])
    ]


def alert_expressions() -> list[tuple[str, str]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return [(rule["alert"], rule["expr"]) for rule in group["rules"]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """Our configuration, pointed at `target` and hurried."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(ALERTS, folder)
    address = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=10) as client:
            yield client
    finally:
        process.terminate()
        process.wait(10)


def ask(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    answer = client.get("/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", (expression, answer)
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


def is_up(client: httpx.Client) -> bool:
    """Prometheus is ready, and has seen enough of the server for rates."""
    try:
        if client.get("/-/ready").status_code != 200:
            return False
    except httpx.TransportError:
        return False
    good = ask(client, "sum_over_time(up[1m])")
    return bool(good) and float(good[0]["value"][1]) >= 4


def load(site: Live, stop: threading.Event) -> None:
    turn = 0
    while not stop.is_set():
        turn += 1
        site.post("/v1/completions", prompt=[turn % 3 + 7] * 100, max_tokens=20)
        site.http.get("/nowhere")


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    stop = threading.Event()
    with live(runner={"step_seconds": 0.002}) as site:
        workers = [threading.Thread(target=load, args=(site, stop)) for _ in range(4)]
        for worker in workers:
            worker.start()
        try:
            folder = tmp_path_factory.mktemp("prometheus")
            with prometheus(folder, site.url.removeprefix("http://")) as client:
                assert eventually(lambda: is_up(client), 40), (folder / "log").read_text()
                yield client
        finally:
            stop.set()
            for worker in workers:
                worker.join()


@needs_prometheus
@pytest.mark.parametrize(("title", "expression"), board_expressions())
def test_every_panel_has_data(scraped: httpx.Client, title: str, expression: str) -> None:
    for variable, value in (
        ("$__rate_interval", WINDOW),
        ("$model", ".*"),
        ("$instance", ".*"),
    ):
        expression = expression.replace(variable, value)
    assert "$" not in expression

    def has_data() -> bool:
        values = [series["value"][1] for series in ask(scraped, expression)]
        return bool(values) and not {"NaN", "+Inf"} & {*values}

    assert eventually(has_data), title  # a scrape that was too slow leaves a gap


@needs_prometheus
@pytest.mark.parametrize(("name", "expression"), alert_expressions())
def test_no_alert_fires_on_a_server_that_is_well(
    scraped: httpx.Client, name: str, expression: str
) -> None:
    assert ask(scraped, expression) == []


@needs_prometheus
@pytest.mark.parametrize(("name", "expression"), alert_expressions())
def test_every_series_an_alert_looks_at_exists(
    scraped: httpx.Client, name: str, expression: str
) -> None:
    """An alert on a name that nobody exports would be silent for ever."""
    names = {found["metric"]["__name__"] for found in ask(scraped, '{__name__!=""}')}
    words = set(expression.replace("(", " ").replace("{", " ").replace("[", " ").split())
    looked_at = {word for word in words if word.startswith(("vllm:", "pellucid_", "http_", "up"))}
    assert looked_at
    assert looked_at <= names


@needs_prometheus
def test_prometheus_itself_accepts_the_files(tmp_path: Path) -> None:
    for file in (DEPLOY / "prometheus").iterdir():
        shutil.copy(file, tmp_path)
    checked = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_prometheus
def test_metrics_pass_promtools_lint_but_for_vllms_names(scraped: httpx.Client) -> None:
    """What we named ourselves follows Prometheus' conventions; vLLM's colons do not."""
    target = ask(scraped, "up")[0]["metric"]["instance"]
    text = httpx.get(f"http://{target}/metrics").text
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    ours = [line for line in checked.stderr.splitlines() if line.startswith(("pellucid", "http"))]
    assert [line for line in ours if "_created" not in line] == []
