"""Container files, as far as they can be checked without a Docker daemon."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
ROOT = DEPLOY.parent
INSTRUCTIONS = {"FROM", "RUN", "COPY", "WORKDIR", "ARG", "ENV", "USER", "VOLUME", "EXPOSE"}
INSTRUCTIONS |= {"HEALTHCHECK", "ENTRYPOINT"}


def instructions(file: Path) -> list[tuple[str, str]]:
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (s.partition(" ") for s in text.splitlines() if s)]


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.cuda"])
def test_a_dockerfile_is_well_formed_and_runs_unprivileged(name: str) -> None:
    steps = instructions(DEPLOY / name)
    assert {word for word, _ in steps} <= INSTRUCTIONS
    assert steps[0][0] == "FROM"
    last = max(i for i, (word, _) in enumerate(steps) if word == "FROM")
    assert ("USER", "pellucid") in steps[last:]
    copied = [rest.split()[:-1] for word, rest in steps if word == "COPY" and "--from" not in rest]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for source in (source for sources in copied for source in sources):
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored


def test_compose_publishes_on_loopback_only_and_mounts_what_exists() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert set(service.get("depends_on", [])) <= compose["services"].keys()
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).exists()
        if build := service.get("build"):
            assert (DEPLOY / build["context"] / build["dockerfile"]).exists()
