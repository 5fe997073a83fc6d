# The image of the operator and of the registry: `finetune operator` and `finetune registry serve`. It holds no torch.
#
# Build it with `python -m images.build operator` (any engine), or with Docker alone, from the root of the repository:
#   docker build .
# It runs as any user, 10001 by default, on a read-only root file system.
ARG BASE_IMAGE=python:3.13-slim
FROM ${BASE_IMAGE}

# pip is thrown away in the step that used it, and so is what nothing here reaches: packages that only the blocking half of the
# Kubernetes client needs, time zones (the base has them), and what images/operator/slim.py takes out. The secrets tell how this
# machine reaches a package index, if it needs telling.
COPY locks/operator.txt /opt/finetune/requirements.txt
COPY images/operator/slim.py /opt/finetune/slim.py
RUN --mount=type=secret,id=pip_configuration --mount=type=secret,id=certificates \
    set -eu; \
    export PIP_CONFIG_FILE=/run/secrets/pip_configuration PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore; \
    python3 -m venv --without-pip /opt/venv; \
    python3 -m venv /tmp/pip; \
    /tmp/pip/bin/pip --python /opt/venv/bin/python install --quiet --no-cache-dir --no-compile --only-binary=:all: \
        --require-hashes --requirement /opt/finetune/requirements.txt; \
    /tmp/pip/bin/pip --python /opt/venv/bin/python uninstall --quiet --yes \
        certifi charset-normalizer durationpy oauthlib requests requests-oauthlib tzdata websocket-client; \
    rm -rf /tmp/pip; \
    cd /opt/venv/lib/python3*/site-packages; \
    /opt/venv/bin/python -B /opt/finetune/slim.py "$PWD"; \
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
