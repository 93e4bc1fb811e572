"""Who is this child and how shall we talk: Manager API or device file, cache, memory, prompt."""
