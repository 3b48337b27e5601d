# Server image for NVIDIA GPUs, linux/amd64 and linux/arm64:
#   docker build -f deploy/docker/server.gpu.Dockerfile -t bmt-adapters/server:0.1.0 .
# The digest is that of an index of both platforms. To renew it, take tag and digest that
# `docker buildx imagetools inspect python:3.11-slim-trixie` prints, in all Dockerfiles and labels.
ARG BASE=python:3.11.17-slim-trixie@sha256:45037981b62b34b44602584fccbc4d884d5f7dc92c7ee86bb38a698a79fe1e51
FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# strip, for the last step. A Debian release has one version of each package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends binutils \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY deploy/docker/requirements requirements
# A pip.conf for other package indexes: docker build --secret id=pip,src=pip.conf …
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -m venv /opt/bmt \
    && python -m pip install --require-hashes -r requirements/build.txt \
    && python -m pip --python /opt/bmt/bin/python install --no-deps --require-hashes \
        -r requirements/server-gpu.txt
# FlashInfer's compiled kernels for the version in the lock, from its own index. Some GPUs alone:
# FLASHINFER_KERNELS="--sm sm90a"; none: the server compiles those that it needs at its first start.
ARG FLASHINFER_KERNELS=""
# hadolint ignore=SC2086
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    if [ "${FLASHINFER_KERNELS}" = none ]; then \
        echo "FlashInfer compiles its kernels at the first start"; \
    else \
        export PATH=/opt/bmt/bin:$PATH FLASHINFER_DISABLE_VERSION_CHECK=1 \
        && python -m flashinfer download-kernels ${FLASHINFER_KERNELS}; \
    fi
COPY pyproject.toml README.md LICENSE ./
COPY core core
COPY trainer trainer
COPY server server
COPY client client
COPY deploy/docker/steps steps
# nvcc comes with vLLM's requirements, in a layout that FlashInfer's linker flags do not expect.
RUN python -m pip wheel --no-deps --no-build-isolation -w /wheels . \
    && python -m pip --python /opt/bmt/bin/python install --no-deps /wheels/*.whl \
    && python steps/slim.py /opt/bmt \
        --without pip opencv-python-headless --cuda-links

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="bmt-server" \
      org.opencontainers.image.description="vLLM server of one base model with a bit mask per request, for NVIDIA GPUs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="https://github.com/bmt-adapters/bmt-adapters" \
      org.opencontainers.image.documentation="https://github.com/bmt-adapters/bmt-adapters/blob/main/docs/operating/images.md" \
      org.opencontainers.image.licenses="Apache-2.0"
# torch.compile, Triton and nvcc call g++ when a model is loaded. Any user may write to /scratch and
# /models, as to /tmp: platforms choose the UID.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /scratch bmt \
    && install -d -o bmt -g 0 -m 1777 /scratch /models \
    && install -d -o bmt -g 0 -m 775 /keys
COPY --from=build /opt/bmt /opt/bmt
COPY deploy/docker/steps/healthcheck.py /opt/bmt/healthcheck.py
# Files are written only to /scratch, /models and /tmp, so the root file system may be read-only.
# USER: a UID without an entry in /etc/passwd has no other name, and torch asks for one.
ENV PATH=/opt/bmt/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 VLLM_NO_USAGE_STATS=1 \
    HOME=/scratch USER=bmt HF_HOME=/models BMT_DATA_DIR=/scratch/bmt VLLM_CACHE_ROOT=/scratch/vllm \
    TORCHINDUCTOR_CACHE_DIR=/scratch/inductor TRITON_CACHE_DIR=/scratch/triton \
    FLASHINFER_WORKSPACE_BASE=/scratch CUDA_HOME=/opt/bmt/cuda
USER 10001:10001
WORKDIR /scratch
VOLUME ["/scratch", "/models"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20m --retries=6 \
    CMD ["python", "/opt/bmt/healthcheck.py"]
ENTRYPOINT ["bmt-server"]
