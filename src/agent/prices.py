"""What models cost: the table that PRICES extends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class Price(BaseModel):
    """Of one model, in one currency for the whole table. What is not named costs nothing.

    Tokens are per million, characters per million, sound per minute.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: float = Field(default=0.0, ge=0)
    cached_input: float = Field(default=0.0, ge=0)
    output: float = Field(default=0.0, ge=0)
    audio_input: float = Field(default=0.0, ge=0)
    cached_audio_input: float = Field(default=0.0, ge=0)
    audio_output: float = Field(default=0.0, ge=0)
    minute: float = Field(default=0.0, ge=0)
    characters: float = Field(default=0.0, ge=0)


LIST_PRICES: Final[Mapping[str, Price]] = {
    "gpt-4.1-mini": Price(input=0.40, cached_input=0.10, output=1.60),
    "gpt-4o-mini-transcribe": Price(minute=0.003),
    "gpt-4o-mini-tts": Price(minute=0.015),
    "gpt-realtime": Price(
        input=4.0, cached_input=0.40, output=16.0, audio_input=32.0, cached_audio_input=0.40, audio_output=64.0
    ),
    "eleven_flash_v2_5": Price(characters=50.0),
}
"""Public list prices of the default models in US dollars, to be replaced by those of one's own contract."""

_TABLE: Final = TypeAdapter(dict[str, Price])


def parse_prices(value: Any) -> dict[str, Price]:
    """The table with LIST_PRICES beneath it, from JSON or a mapping. Raises ValueError."""
    if isinstance(value, str):
        if not value.strip():
            return dict(LIST_PRICES)
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("must be a JSON object of models and their prices") from None
    if not isinstance(value, Mapping):
        raise ValueError("must be a JSON object of models and their prices")
    return {**LIST_PRICES, **_TABLE.validate_python(dict(value))}
