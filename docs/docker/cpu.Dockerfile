# c2fdft on a CPU. From the top of the repository: docker build -f docs/docker/cpu.Dockerfile -t c2fdft .
FROM python:3.12-slim

# the program compiles its kernels for the processor it runs on
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE LICENSE-WEIGHTS.md /src/
COPY docs/models/photos_free.md /src/docs/models/
COPY c2fdft_cli /src/c2fdft_cli
COPY recipes /src/recipes
# the headless OpenCV needs no libGL
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
      '/src[plots,no-reference,video,heif,export]' \
    && pip uninstall -y opencv-python \
    && pip install --no-cache-dir opencv-python-headless \
    && c2fdft --version

# for any --user: caches have somewhere to go
ENV HOME=/tmp
WORKDIR /data
ENTRYPOINT ["c2fdft"]
