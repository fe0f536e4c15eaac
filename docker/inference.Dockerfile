# An inference service with all engines, for x86-64.
#   CPU:   docker build -f docker/inference.Dockerfile --build-arg CPU_INDEX=URL -t isthmus-inference .
#   CUDA:  docker build -f docker/inference.Dockerfile --build-arg TEXT=text -t isthmus-inference .
FROM python:3.11.17-slim-trixie@sha256:45037981b62b34b44602584fccbc4d884d5f7dc92c7ee86bb38a698a79fe1e51
ARG TEXT=text-cpu
# The index with the CPU build of PyTorch (see the README). The CUDA build is on the default index.
ARG CPU_INDEX=
# vLLM compiles small kernels when it starts. Debian keeps no old versions, so none can be named.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /isthmus
COPY requirements requirements
# Exactly the files of the lock, and hatchling, which builds the package below. A file with another
# hash is refused, whichever index it comes from.
RUN pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes \
      ${CPU_INDEX:+--extra-index-url "$CPU_INDEX"} -r "requirements/inference-$TEXT.txt"
COPY pyproject.toml README.md ./
COPY contract contract
COPY edge edge
COPY inference inference
COPY launch launch
COPY keys keys
COPY generated generated
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && useradd --uid 10001 --create-home isthmus
USER 10001
WORKDIR /
# The models are files on a volume. No hub is used, and no usage statistics are sent.
# HOME and USER are set for containers that run as another user (compose.yaml).
# TOKENIZERS_PARALLELISM is no secret, though hadolint takes it for one.
# hadolint ignore=DL3064
ENV HOME=/home/isthmus USER=isthmus HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1 VLLM_LOGGING_LEVEL=ERROR TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false
EXPOSE 50051
HEALTHCHECK --start-period=300s CMD ["python", "-c", "import grpc, sys; from grpc_health.v1 import health_pb2 as p, health_pb2_grpc as g; sys.exit(g.HealthStub(grpc.insecure_channel('127.0.0.1:50051')).Check(p.HealthCheckRequest(), timeout=3).status != p.HealthCheckResponse.SERVING)"]
ENTRYPOINT ["isthmus", "inference"]
CMD ["--config", "/etc/isthmus/isthmus.toml", "--listen", "0.0.0.0:50051", "--keys", "/run/keys/keys.json", "--allow-plaintext"]
