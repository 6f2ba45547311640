#!/usr/bin/env bash
# What a night is: the environment of this machine, tonight's code, then studies/nightly.py, with results where all
# machines see them.  The service, the CronJob and a person by hand all run this.
#
# CHOOSE, in ~/.palimpsest/nightly.env, which nobody else reads and `ray up` leaves alone (install.sh makes it):
#     PALIMPSEST_BRANCH=main                    take this branch's latest commit first; unset: what is checked out
#     PALIMPSEST_NOTIFY=https://hooks.slack...  where a night that fails is told (notify.sh); what it finds, too, where
#                                               studies/nightly.toml says notify = ["PALIMPSEST_NOTIFY"]
set -euo pipefail
cd "$(dirname "$0")/../.."
wrong() { echo "error: $1" >&2; exit 2; }

[ ! -f ~/.palimpsest/env ] || . ~/.palimpsest/env               # what cluster/node.sh says of this machine
if [ -f ~/.palimpsest/nightly.env ]; then
  chmod 600 ~/.palimpsest/nightly.env
  set -a; . ~/.palimpsest/nightly.env; set +a
fi

if [ -n "${PALIMPSEST_BRANCH:-}" ]; then
  git rev-parse --git-dir > /dev/null 2>&1 ||
    wrong "PALIMPSEST_BRANCH: $PWD is no clone of a repository; bash cluster/nightly/install.sh REPOSITORY makes one"
  # Not a pull: a branch that was rebased is followed, too, and what is not committed here is never lost.
  { git fetch --quiet origin "$PALIMPSEST_BRANCH" && git checkout --quiet --detach FETCH_HEAD; } ||
    wrong "PALIMPSEST_BRANCH: $PALIMPSEST_BRANCH cannot be fetched and checked out in $PWD"      # not last night's code again
  bash cluster/nightly/packages.sh ||
    wrong "the packages of $(git rev-parse --short HEAD) cannot be installed; the next night tries again"
fi
[ ! -x .venv/bin/python ] || export PATH="$PWD/.venv/bin:$PATH"
export PYTHONPATH="$PWD"                # this code, wherever that python's editable install may point
exec python studies/nightly.py --out "${PALIMPSEST_OUT:-results}/nightly" "$@"
