#!/usr/bin/env bash
# What a night is: the environment of this machine, then studies/nightly.py, with results where all machines see them.
# The service, the CronJob and a person by hand all run this.
#
# CHOOSE, in ~/.palimpsest/env (mode 600):
#     export PALIMPSEST_BRANCH=main                    take this branch's latest commit first; unset: what is checked out
#     export PALIMPSEST_NOTIFY=https://hooks.slack...  an address that studies/nightly.toml asks for by name: notify = [...]
set -euo pipefail
cd "$(dirname "$0")/../.."
[ ! -f ~/.palimpsest/env ] || . ~/.palimpsest/env
[ -x .venv/bin/python ] && PATH="$PWD/.venv/bin:$PATH"
if [ -n "${PALIMPSEST_BRANCH:-}" ]; then
  before=$(git rev-parse HEAD)
  if ! git pull --quiet --ff-only origin "$PALIMPSEST_BRANCH"; then
    echo "error: PALIMPSEST_BRANCH: $PALIMPSEST_BRANCH cannot be pulled" >&2; exit 2      # not last night's code again
  fi
  git diff --quiet "$before" -- constraints.txt pyproject.toml ||
    python -m pip install --quiet --constraint constraints.txt --editable '.[nightly]'
fi
exec python studies/nightly.py --out "${PALIMPSEST_OUT:-results}/nightly" "$@"
