"""The real embedding model, fetched and built once and kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.library import model_files
from agent.library.embedding import Embedder, ModelFiles
from agent.settings import Settings

# Outside the tests' temporary folders, so that the 84 MB are fetched once; TEST_MODEL_DIR names another place.
MODELS = Path(os.environ.get("TEST_MODEL_DIR") or Path(__file__).parents[2] / ".state" / "models")


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """MODEL_DIR with the built-in model in it."""
    model_files.ensure(Settings(_env_file=None, model_dir=MODELS))  # type: ignore[call-arg]
    return MODELS


@pytest.fixture(scope="session")
def built_model(model_dir: Path) -> ModelFiles:
    return model_files.find(Settings(_env_file=None, model_dir=model_dir))  # type: ignore[call-arg]


@pytest.fixture(scope="session")
def embedder(built_model: ModelFiles) -> Embedder:
    return Embedder(built_model)
