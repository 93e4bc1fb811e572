"""A LiveKit Agents worker that gives children's voice devices their voice."""

import os

# Before anything imports it: onnxruntime's wheel otherwise starts a thread and keeps a file that report to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
