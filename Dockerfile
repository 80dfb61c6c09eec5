# qvl in a container, for a processor or for an NVIDIA GPU (with the NVIDIA container toolkit):
#   docker build --target cpu -t qvl:cpu .
#   docker build --target cuda -t qvl:cuda .
#   docker run -v qvl-models:/models -v "$PWD:/work:ro" qvl:cpu describe /work/cup.jpg

FROM python:3.13.9-slim-trixie AS build
ENV PATH=/opt/qvl/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/qvl
COPY pyproject.toml README.md LICENSE ./
COPY src ./src

# the range is pyproject.toml's; PyTorch's own index has builds without CUDA's libraries
FROM build AS build-cpu
RUN pip install --index-url https://download.pytorch.org/whl/cpu "torch>=2.11,<2.14" \
    && pip install "qvl[documents,grammar,mcp,serve,storage,tables,video] @ file:///src"

FROM build AS build-cuda
RUN pip install "qvl[documents,grammar,mcp,serve,storage,tables,video] @ file:///src"

FROM python:3.13.9-slim-trixie AS runtime
# a compiler: the kernels are built for the processor that they run on, at first use; its version is
# the distribution's, which keeps no older ones
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home qvl \
    && install -d -o qvl -g qvl /models /home/qvl/.cache
ENV PATH=/opt/qvl/bin:$PATH \
    HF_HOME=/models \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /home/qvl
VOLUME ["/models", "/home/qvl/.cache"]
EXPOSE 8000
# /livez needs no key
HEALTHCHECK --interval=30s --timeout=5s --start-period=180s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
ENTRYPOINT ["qvl"]
# from outside of the container it asks for keys: --api-key-file or QVL_API_KEYS
CMD ["serve", "--host", "0.0.0.0"]

FROM runtime AS cuda
COPY --from=build-cuda /opt/qvl /opt/qvl

FROM runtime AS cpu
COPY --from=build-cpu /opt/qvl /opt/qvl
