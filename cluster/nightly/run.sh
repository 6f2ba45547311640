#!/usr/bin/env bash
# What a night is: the environment of this machine, then studies/nightly.py, with results where all machines see them.
# The service, the CronJob and a person by hand all run this.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ ! -f ~/.palimpsest/env ] || . ~/.palimpsest/env
[ -x .venv/bin/python ] && PATH="$PWD/.venv/bin:$PATH"
exec python studies/nightly.py --out "${PALIMPSEST_OUT:-results}/nightly" "$@"
