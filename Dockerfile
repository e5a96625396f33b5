# docker build -t medxfer .
# docker run --rm --gpus all --shm-size 8g -v "$PWD/data:/data:ro" -v "$PWD/runs:/workspace/runs" medxfer \
#     train --config configs/xray.yaml --data.source /data/labels.csv
#
# The image holds the program only: no data, no weights, no secrets. Another CUDA: --build-arg BASE=nvidia/cuda:…
ARG BASE=nvidia/cuda:12.8.1-base-ubuntu24.04
FROM ${BASE}

ARG USER_ID=1001
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --non-unique --uid "${USER_ID}" --create-home medxfer \
    && mkdir -p /workspace/runs /opt/medxfer \
    && chown -R medxfer:medxfer /workspace /opt/medxfer
USER medxfer
WORKDIR /opt/medxfer
ENV PATH=/opt/medxfer/venv/bin:$PATH PYTHONUNBUFFERED=1

COPY --chown=medxfer pyproject.toml README.md LICENSE ./
COPY --chown=medxfer medxfer medxfer
RUN python3 -m venv venv && pip install --no-cache-dir .

WORKDIR /workspace
COPY --chown=medxfer configs configs
ENTRYPOINT ["python", "-m", "medxfer"]
CMD ["--help"]
