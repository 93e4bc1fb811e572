"""The real embedding model, loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.library import model_files
from agent.library.embedding import Embedder, ModelFiles
from agent.settings import Settings


@pytest.fixture(scope="session")
def built_model(model_dir: Path) -> ModelFiles:
    return model_files.find(Settings(_env_file=None, model_dir=model_dir))  # type: ignore[call-arg]


@pytest.fixture(scope="session")
def embedder(built_model: ModelFiles) -> Embedder:
    return Embedder(built_model)
