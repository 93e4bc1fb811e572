"""What must reach a service later: one durable queue on disk, written by job processes, delivered by the worker."""
