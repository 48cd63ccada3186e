# One image for the server, the worker and the scheduler: the command says which. docs/docker.md tells how to run it.

ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/tusd-py
# What changes seldom first: these layers are made anew only when a version changes.
# otel: with OpenTelemetry (docs/monitoring.md).
ARG REQUIREMENTS=runtime
COPY requirements/build.txt requirements/node.txt requirements/runtime.txt requirements/otel.txt requirements/
RUN python -m pip install --require-hashes -r requirements/build.txt -r requirements/node.txt \
    && /opt/tusd-py/bin/pip install --require-hashes -r requirements/${REQUIREMENTS}.txt
COPY pyproject.toml README.md LICENSE ./
COPY tusd_py tusd_py
COPY hooks hooks
COPY workers workers
COPY frontend frontend
COPY share share
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/tusd-py/bin/pip install --no-deps dist/*.whl \
    && /opt/tusd-py/bin/pip uninstall --yes pip

FROM python:${PYTHON}-slim
# Fails here, not at two in the morning, where an image has no time zones.
RUN groupadd --gid 10001 tusd \
    && useradd --uid 10001 --gid tusd --home-dir /data --no-create-home --shell /usr/sbin/nologin tusd \
    && install --directory --owner tusd --group tusd --mode 0750 /data \
    && python -c "import zoneinfo; zoneinfo.ZoneInfo('Europe/Zurich')"
COPY --from=build /opt/tusd-py /opt/tusd-py
ENV PATH=/opt/tusd-py/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TUSD_HOST=0.0.0.0 \
    TUSD_PORT=8080 \
    TUSD_UPLOAD_DIR=/data
USER 10001:10001
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["tusd-py", "health"]
ENTRYPOINT ["tusd-py"]
CMD ["serve"]
