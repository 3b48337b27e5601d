# Trainer image for NVIDIA GPUs and CPUs, linux/amd64 and linux/arm64; for CPUs alone, a third of the
# size, with --build-arg DEVICE=cpu:
#   docker build -f deploy/docker/trainer.Dockerfile -t bmt-adapters/trainer:0.1.0 .
# The digest is that of an index of both platforms. To renew it, take tag and digest that
# `docker buildx imagetools inspect python:3.11-slim-trixie` prints, in all Dockerfiles and labels.
ARG BASE=python:3.11.17-slim-trixie@sha256:45037981b62b34b44602584fccbc4d884d5f7dc92c7ee86bb38a698a79fe1e51
FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# gcc compiles pycosat, which has no wheels; strip, for the last step. A Debian release has one version
# of each package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends binutils gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY deploy/docker/requirements requirements
# PyTorch's builds for CPUs, or a mirror of them. A pip.conf for other package indexes:
# docker build --secret id=pip,src=pip.conf …
ARG DEVICE=gpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -m venv --without-pip /opt/bmt \
    && python -m pip install --require-hashes -r requirements/build.txt \
    && if [ "${DEVICE}" = cpu ]; then \
        python -m pip --python /opt/bmt/bin/python install --no-deps \
            --extra-index-url "${TORCH_INDEX}" -r requirements/torch-cpu.txt \
        && python -m pip --python /opt/bmt/bin/python install --no-deps --require-hashes \
            -r requirements/trainer-cpu.txt; \
    else \
        python -m pip --python /opt/bmt/bin/python install --no-deps --require-hashes \
            -r requirements/trainer.txt; \
    fi
COPY pyproject.toml README.md LICENSE ./
COPY core core
COPY trainer trainer
COPY server server
COPY client client
COPY deploy/docker/steps steps
RUN python -m pip wheel --no-deps --no-build-isolation -w /wheels . \
    && python -m pip --python /opt/bmt/bin/python install --no-deps /wheels/*.whl \
    && python steps/slim.py /opt/bmt --if-imported torchvision

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="bmt-trainer" \
      org.opencontainers.image.description="Trains bit masks by SFT, GRPO and SDFT, and uploads them" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="https://github.com/bmt-adapters/bmt-adapters" \
      org.opencontainers.image.documentation="https://github.com/bmt-adapters/bmt-adapters/blob/main/docs/operating/images.md" \
      org.opencontainers.image.licenses="Apache-2.0"
# Any user may write to /scratch and /models, as to /tmp: platforms choose the UID.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /scratch bmt \
    && install -d -o bmt -g 0 -m 1777 /scratch /models
COPY --from=build /opt/bmt /opt/bmt
# Files are written only to /scratch, /models and /tmp, so the root file system may be read-only.
# USER: a UID without an entry in /etc/passwd has no other name, and torch asks for one.
ENV PATH=/opt/bmt/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/scratch USER=bmt HF_HOME=/models TORCHINDUCTOR_CACHE_DIR=/scratch/inductor
USER 10001:10001
WORKDIR /scratch
VOLUME ["/scratch", "/models"]
# A run is a batch job without a health endpoint.
HEALTHCHECK NONE
ENTRYPOINT ["bmt-train"]
