# docker build -t fireside . && docker run -p 8000:8000 -v fireside:/data fireside
# Use Fireside without a container if you can: it then finds LM Studio by itself. docs/self-hosting.md has more.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /src
RUN python3 -m venv /opt/fireside
COPY requirements/base.txt requirements/build.txt ./
RUN /opt/fireside/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r base.txt -r build.txt
COPY . .
RUN /opt/fireside/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation . \
    && /opt/fireside/bin/pip uninstall --yes setuptools pip

FROM ${BASE}
COPY --from=build /opt/fireside /opt/fireside
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin fireside \
    && install --directory --owner fireside --mode 700 /data
USER 10001
ENV PATH=/opt/fireside/bin:$PATH FIRESIDE_DATA_DIR=/data FIRESIDE_HOST=0.0.0.0 FIRESIDE_LMSTUDIO_URL=http://host.docker.internal:1234
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["fireside"]
