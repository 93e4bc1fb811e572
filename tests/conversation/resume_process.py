"""A visit that says one number after the other and is killed: `FILE MAC`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from livekit.agents.llm import ChatContext

from agent.conversation.resume import Snapshot, SqliteResumeStore, encode
from agent.values import DeviceMac

if __name__ == "__main__":
    store = SqliteResumeStore(Path(sys.argv[1]), window_s=300)
    began_at = time.time()
    chat = ChatContext.empty()
    for number in range(100_000):
        chat.add_message(role="user", content=str(number))
        store.save(DeviceMac(sys.argv[2]), began_at, encode(Snapshot(chat)))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
