# Two images from one file:
#   docker build --target edge   -t trireme-edge .     controller and gateway, without torch
#   docker build --target worker -t trireme-worker .   the same and what runs models
# The worker takes torch from the default index; --build-arg TORCH_INDEX=… names another one,
# such as PyTorch's own index of CPU builds, which makes the image several gigabytes smaller.
# --build-arg EXTRAS=worker,quant adds what --load-8bit needs.

FROM python:3.12-slim AS base
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    HOME=/tmp \
    PATH=/opt/trireme/bin:$PATH
RUN groupadd --gid 10001 trireme \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin trireme \
    && install --directory --owner=trireme --group=trireme /cache /state

FROM base AS build-edge
WORKDIR /src
COPY constraints.txt .
RUN python -m venv /opt/trireme
COPY . .
RUN pip install --no-cache-dir -c constraints.txt .

FROM base AS build-worker
ARG TORCH_INDEX=""
ARG EXTRAS=worker
WORKDIR /src
COPY constraints.txt .
RUN python -m venv /opt/trireme \
    && grep '^torch==' constraints.txt > torch.txt \
    && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r torch.txt
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ".[$EXTRAS]"

FROM base AS edge
COPY --from=build-edge /opt/trireme /opt/trireme
USER 10001:10001
EXPOSE 8000 21001
# The default is a gateway; compose.yaml says what else runs here and checks each tier's health.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
CMD ["trireme-gateway", "--host", "0.0.0.0"]

FROM base AS worker
ENV HF_HOME=/cache
COPY --from=build-worker /opt/trireme /opt/trireme
USER 10001:10001
VOLUME /cache
EXPOSE 21002
HEALTHCHECK --interval=5s --timeout=3s --start-period=30m --retries=3 CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:21002/readyz', timeout=2)"]
CMD ["trireme-worker", "--host", "0.0.0.0"]
