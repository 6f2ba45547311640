#!/usr/bin/env bash
# Install the nightly timer on this machine (the head, or any machine with systemd and the repository).
#
#     bash cluster/nightly/install.sh             then: systemctl list-timers palimpsest-nightly
#     bash cluster/nightly/install.sh --remove
#     sudo systemctl start palimpsest-nightly     tonight, now
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
into=${UNITS:-/etc/systemd/system}
as_root() { if [ -w "$into" ]; then "$@"; else sudo "$@"; fi; }
mkdir -p ~/.palimpsest

if [ "${1:-}" = --remove ]; then
  as_root systemctl disable --now palimpsest-nightly.timer
  as_root rm -f "$into"/palimpsest-nightly*
  as_root systemctl daemon-reload
  exit 0
fi
for unit in palimpsest-nightly.service palimpsest-nightly.timer palimpsest-nightly-failed@.service; do
  sed -e "s#@USER@#$(id -un)#g" -e "s#@HOME@#$HOME#g" -e "s#@ROOT@#$root#g" "$here/$unit" | as_root tee "$into/$unit" > /dev/null
done
as_root systemctl daemon-reload
as_root systemctl enable --now palimpsest-nightly.timer
