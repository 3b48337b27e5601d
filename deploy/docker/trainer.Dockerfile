# syntax=docker/dockerfile:1
# Trainer image: docker build -f deploy/docker/trainer.Dockerfile -t bmt-adapters/trainer:0.1.0 .
FROM python:3.11.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/bmt
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY core core
COPY trainer trainer
COPY server server
COPY client client
RUN /opt/bmt/bin/pip install ".[trainer,client]"

FROM python:3.11.11-slim-bookworm
LABEL org.opencontainers.image.title="bmt-trainer" \
      org.opencontainers.image.description="Trains bit masks by SFT, GRPO and SDFT, and uploads them" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /scratch bmt \
    && install -d -o bmt -g bmt /scratch /models
COPY --from=build /opt/bmt /opt/bmt
# Files are written only to /scratch, /models and /tmp, so the root file system may be read-only.
ENV PATH=/opt/bmt/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/scratch HF_HOME=/models
USER 10001:10001
WORKDIR /scratch
VOLUME ["/scratch", "/models"]
# A run is a batch job without a health endpoint.
HEALTHCHECK NONE
ENTRYPOINT ["bmt-train"]
