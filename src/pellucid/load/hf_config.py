from pathlib import Path
from pellucid.models.config import ModelConfig


def parse_hf_config(folder: Path) -> ModelConfig:
    raise NotImplementedError
