# The HTTP server in a container, for CPUs:
#
#     docker build -t mp2 .
#     docker run --rm -v mp2-keys:/keys mp2 mp2 key /keys/keys.json anna
#     docker run -p 8000:8000 -v mp2-tasks:/tasks -v mp2-keys:/keys mp2
#
# This build has not been run yet: the machine that the project is developed on has no container runtime.

FROM python:3.11-slim AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
# PyTorch from its own index: the default one brings CUDA libraries of several gigabytes
RUN python -m venv /opt/mp2 \
    && /opt/mp2/bin/pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu \
        "$(grep '^torch==' constraints.txt)" \
    && /opt/mp2/bin/pip install --no-cache-dir -c constraints.txt .

FROM python:3.11-slim
RUN useradd --system --create-home mp2 \
    && mkdir /tasks /keys \
    && chown mp2 /tasks /keys
COPY --from=build /opt/mp2 /opt/mp2
ENV PATH=/opt/mp2/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
USER mp2
VOLUME ["/tasks", "/keys"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s --interval=15s --timeout=5s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
# No key file, no start: whoever reaches the port could tune and delete. `--no-keys` says that this is wanted.
CMD ["mp2", "serve", "/tasks", "--host", "0.0.0.0", "--keys", "/keys/keys.json"]
