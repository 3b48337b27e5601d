# syntax=docker/dockerfile:1
# Server image for CPUs: docker build -f deploy/docker/server.cpu.Dockerfile -t bmt-adapters/server:0.1.0-cpu .
FROM python:3.11.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/bmt
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY core core
COPY trainer trainer
COPY server server
COPY client client
# A CPU build of torch first, to avoid the CUDA libraries. torchvision, torchaudio and torchcodec are
# removed because their builds do not match it.
RUN /opt/bmt/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu \
    && /opt/bmt/bin/pip install ".[cpu,client]" \
    && /opt/bmt/bin/pip uninstall -y torchvision torchaudio torchcodec

FROM python:3.11.11-slim-bookworm
LABEL org.opencontainers.image.title="bmt-server" \
      org.opencontainers.image.description="vLLM server of one base model with a bit mask per request" \
      org.opencontainers.image.licenses="Apache-2.0"
# g++ compiles the mask kernel and torch.compile's code at the first start; vLLM recommends
# tcmalloc.
# A Debian release has one version of each package, and the image pins the release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libnuma1 libtcmalloc-minimal4 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /scratch bmt \
    && install -d -o bmt -g bmt /scratch /models /keys
COPY --from=build /opt/bmt /opt/bmt
# Files are written only to /scratch, /models and /tmp, so the root file system may be read-only.
ENV PATH=/opt/bmt/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 VLLM_NO_USAGE_STATS=1 \
    HOME=/scratch HF_HOME=/models BMT_DATA_DIR=/scratch/bmt VLLM_CACHE_ROOT=/scratch/vllm \
    TORCHINDUCTOR_CACHE_DIR=/scratch/inductor
USER 10001:10001
WORKDIR /scratch
VOLUME ["/scratch", "/models"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20m --retries=6 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
ENTRYPOINT ["bmt-server"]
