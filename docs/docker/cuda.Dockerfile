# c2fdft on NVIDIA GPUs: docker build -f docs/docker/cuda.Dockerfile -t c2fdft:cuda .
# CUDA's libraries come with torch; the driver comes with the host.
FROM python:3.12-slim

# torch.compile calls a C compiler
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE LICENSE-WEIGHTS.md /src/
COPY docs/models/photos_free.md /src/docs/models/
COPY c2fdft_cli /src/c2fdft_cli
COPY recipes /src/recipes
# the headless OpenCV needs no libGL
RUN pip install --no-cache-dir '/src[plots,no-reference,video,heif,export,logs]' \
    && pip uninstall -y opencv-python \
    && pip install --no-cache-dir opencv-python-headless \
    && c2fdft --version

# for any --user: caches have somewhere to go
ENV HOME=/tmp
WORKDIR /data
ENTRYPOINT ["c2fdft"]
