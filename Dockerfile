# The worker in a container: locked packages, model files fetched at build, no root, read-only root file system.
#   docker build -t toy-voice-agent .
#   docker run --read-only --tmpfs /tmp -v toy-state:/state --env-file .env toy-voice-agent
# Values in that file stand without quotation marks: docker would keep them.

FROM python:3.11-slim AS build
WORKDIR /build
RUN python -m venv /app/venv
COPY requirements.lock ./
RUN /app/venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md ./
COPY src ./src
RUN /app/venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .
# The model is built with packages that serving does not need: they stay in this stage.
COPY requirements-dev.lock ./
RUN python -m venv /build/models-venv \
    && /build/models-venv/bin/pip install --no-cache-dir --require-hashes -r requirements-dev.lock \
    && /build/models-venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && MODEL_DIR=/app/models /build/models-venv/bin/python -m agent download-files

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home --home-dir /home/toy toy && install -d -o toy -g toy -m 700 /state
COPY --from=build /app /app
COPY greetings /app/greetings
ENV PATH=/app/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    STATE_DIR=/state \
    MODEL_DIR=/app/models \
    GREETINGS_DIR=/app/greetings \
    HTTP_HOST=0.0.0.0 \
    HTTP_PORT=8081
USER 10001
WORKDIR /app
VOLUME /state
EXPOSE 8081
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"HTTP_PORT\"]}/live', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["python", "-m", "agent", "start"]
