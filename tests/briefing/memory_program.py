"""The self-hosted Mem0 as the worker would start it: `STATE_DIR LLM_BASE_URL`, with words instead of a model."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from agent.briefing import mem0_server
from agent.settings import Settings


class WordEmbedder:
    """A vector of which words occur: near texts share words."""

    dimension = 384

    def embed(self, text: str) -> list[float]:
        vector = [0.0] * self.dimension
        for word in text.lower().replace(",", " ").split():
            vector[int(hashlib.sha256(word.encode()).hexdigest(), 16) % self.dimension] += 1.0
        length = sum(value * value for value in vector) ** 0.5 or 1.0
        return [value / length for value in vector]

    embed_document = embed


if __name__ == "__main__":
    settings = Settings(_env_file=None, state_dir=Path(sys.argv[1]), llm_base_url=sys.argv[2])  # type: ignore[call-arg]
    mem0_server.run(settings, WordEmbedder)
