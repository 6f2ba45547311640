#!/usr/bin/env bash
# The packages of the night's own checkout: a virtual environment beside it, to the versions of its constraints.txt.
# What was installed last is written down when it has been, so what failed is tried again the next night.
#
#     bash cluster/nightly/packages.sh        with uv where it is (cluster/node.sh brings it), else with pip
#
#   EXTRAS   of pyproject.toml                      (cluster,nightly,paper)
#   PYTHON   which makes the environment            (3.11; all machines of a cluster need the same)
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$HOME/.local/bin:$PATH"
extras=${EXTRAS:-cluster,nightly,paper} stamp=.venv/installed-nightly
wanted=$(echo "$extras" | cat - constraints.txt pyproject.toml | sha256sum)
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2> /dev/null)" = "$wanted" ]; then exit 0; fi

if command -v uv > /dev/null; then
  [ -x .venv/bin/python ] || uv venv --quiet --python "${PYTHON:-3.11}" .venv
  uv pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable ".[$extras]"
else
  python="python${PYTHON:-3.11}"
  command -v "$python" > /dev/null || python=python3
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip --version > /dev/null 2>&1 || .venv/bin/python -m ensurepip        # uv makes environments without
  .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[$extras]"
fi
echo "$wanted" > "$stamp"
