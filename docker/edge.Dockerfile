# The edge, without torch and other model packages.
#   docker build -f docker/edge.Dockerfile -t isthmus-edge .
FROM python:3.11.17-slim-trixie@sha256:45037981b62b34b44602584fccbc4d884d5f7dc92c7ee86bb38a698a79fe1e51
WORKDIR /isthmus
COPY requirements requirements
# Exactly the files that were tested, and hatchling, which builds the package below.
RUN pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes -r requirements/edge.txt
COPY pyproject.toml README.md ./
COPY contract contract
COPY edge edge
COPY inference inference
COPY launch launch
COPY keys keys
COPY generated generated
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && useradd --uid 10001 --no-create-home isthmus
USER 10001
WORKDIR /
EXPOSE 8000
HEALTHCHECK --start-period=10s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
ENTRYPOINT ["isthmus", "edge"]
CMD ["--host", "0.0.0.0", "--port", "8000", "--keys", "/run/keys/keys.json", "--upstream", "text:50051", "--upstream", "embedding:50051", "--upstream", "image:50051", "--allow-plaintext", "--settle-seconds", "5"]
