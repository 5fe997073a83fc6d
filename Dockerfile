# The image of the operator and of the registry: `finetune operator` and `finetune registry serve`. It holds no torch.
#
# Build it with `python -m images.build operator` (any engine), or with Docker alone, from the root of the repository:
#   docker build .
# It runs as any user, 10001 by default, on a read-only root file system.
ARG BASE_IMAGE=python:3.13-slim
FROM ${BASE_IMAGE}

# pip is thrown away in the step that used it. Of the Kubernetes client only its asyncio half is used (kubernetes.aio, which
# never imports the other): the blocking half is 65 MB of generated models, source and compiled, and costs every start half a
# second, so it goes, and the package's own __init__, which imports it, becomes empty. Of the other half's generated models the
# compiled form is enough. The secrets tell how this machine reaches a package index, if it needs telling.
COPY locks/operator.txt /opt/finetune/requirements.txt
RUN --mount=type=secret,id=pip_configuration --mount=type=secret,id=certificates \
    set -eu; \
    export PIP_CONFIG_FILE=/run/secrets/pip_configuration PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore; \
    python3 -m venv --without-pip /opt/venv; \
    python3 -m venv /tmp/pip; \
    /tmp/pip/bin/pip --python /opt/venv/bin/python install --quiet --no-cache-dir --no-compile --only-binary=:all: \
        --require-hashes --requirement /opt/finetune/requirements.txt; \
    rm -rf /tmp/pip; \
    cd /opt/venv/lib/python3*/site-packages; \
    find kubernetes -mindepth 1 -maxdepth 1 ! -name aio -exec rm -rf {} +; \
    : > kubernetes/__init__.py; \
    rm -rf sqlalchemy/testing; \
    /opt/venv/bin/python -m compileall -q -b --invalidation-mode unchecked-hash kubernetes/aio/client/api kubernetes/aio/client/models; \
    find kubernetes/aio/client/api kubernetes/aio/client/models -name '*.py' -delete; \
    /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash .; \
    echo 'finetune:x:10001:10001::/home/finetune:/usr/sbin/nologin' >> /etc/passwd; \
    echo 'finetune:x:10001:' >> /etc/group; \
    mkdir -p /home/finetune; chown 10001:10001 /home/finetune

ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/finetune \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/home/finetune
WORKDIR /opt/finetune
ENTRYPOINT ["finetune"]

# Last and small: a change of code makes a new layer of some hundred kilobytes, and nothing else travels.
COPY pyproject.toml images/operator/install.py /opt/finetune/
COPY operator/src/finetune /opt/finetune/finetune
RUN ["python", "/opt/finetune/install.py"]
USER 10001:10001
