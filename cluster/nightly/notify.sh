#!/usr/bin/env bash
# Say that a night failed, and why: to the journal, and to where nights are told (run.sh says how that is set), so that
# silence means that all is well.  What the night has said itself, a regression with its message, is not said again.
#
#     MONITOR_EXIT_STATUS=2 bash cluster/nightly/notify.sh NAME        palimpsest-nightly-failed@.service, kuberay/nightly.yaml
#
# By studies/engine/notices.py, which knows mail and the rest; where not even that runs, by curl to PALIMPSEST_NOTIFY, or to
# what ~/.palimpsest/webhook holds.  systemd (251 and newer) sets MONITOR_*.  The address is a secret: it is in no argument.
set -o pipefail                         # and nothing else: a notice is tried whatever is broken here
cd "$(dirname "$0")/../.." || exit 1
[ ! -f ~/.palimpsest/env ] || . ~/.palimpsest/env
if [ -f ~/.palimpsest/nightly.env ]; then set -a; . ~/.palimpsest/nightly.env; set +a; fi
[ ! -x .venv/bin/python ] || PATH="$PWD/.venv/bin:$PATH"

name=${1:-nightly} run=${MONITOR_INVOCATION_ID:-} why=""
if [ -n "$run" ] && [ "$(timeout 20 cat "${PALIMPSEST_OUT:-results}/nightly/told" 2> /dev/null)" = "$run" ]; then
  echo "$name: exit ${MONITOR_EXIT_STATUS:-?}, which the night has told"
  exit 0
fi
# Our own sentences alone: what others print may hold what no channel should.
if [ -n "$run" ] && command -v journalctl > /dev/null; then
  why=$(timeout 20 journalctl --quiet --output=cat "_SYSTEMD_INVOCATION_ID=$run" | grep -E '^(error|halted): ' | tail -n 1)
fi
text="$name on $(hostname): ${MONITOR_SERVICE_RESULT:-failed}, exit ${MONITOR_EXIT_STATUS:-?}${why:+; ${why:0:500}}"
echo "$text"
if printf '%s\n' "$text" | PYTHONPATH="$PWD" timeout 120 python -m studies.engine.notices "$name failed"; then exit 0; fi

hook=${PALIMPSEST_NOTIFY:-}
case $hook in http://* | https://*) ;; *) hook=$(cat ~/.palimpsest/webhook 2> /dev/null) ;; esac
[ -n "$hook" ] || exit 0
text=${text//[[:cntrl:]]/ } text=${text//\\/\\\\} text=${text//\"/\\\"}
printf 'url = "%s"\n' "$hook" |
  curl -fsS -m 30 --retry 3 -H 'Content-Type: application/json' --data "{\"text\": \"$text\"}" --config - > /dev/null
