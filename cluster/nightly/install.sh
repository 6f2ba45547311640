#!/usr/bin/env bash
# Install the nightly timer on this machine: the head, or any machine with systemd.  A night has a clone and an environment
# of its own, ~/.palimpsest/nightly, so it knows its commits, and nobody's work in a checkout disturbs it.
#
#     bash cluster/nightly/install.sh                       from a clone: its origin, and the branch that is checked out
#     bash cluster/nightly/install.sh REPOSITORY [BRANCH]   from what `ray up` brought, which has no history: name it
#     bash cluster/nightly/install.sh --remove              the timer; clone, settings and results stay
#     systemctl list-timers palimpsest-nightly;  sudo systemctl start palimpsest-nightly      when; tonight, now
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
into=${UNITS:-/etc/systemd/system}
root=$HOME/.palimpsest/nightly
settings=$HOME/.palimpsest/nightly.env
as_root() { if [ -w "$into" ]; then "$@"; else sudo "$@"; fi; }
wrong() { echo "install.sh: $1" >&2; exit 2; }

if [ "${1:-}" = --remove ]; then
  as_root systemctl disable --now palimpsest-nightly.timer
  as_root rm -f "$into"/palimpsest-nightly*
  as_root systemctl daemon-reload
  exit 0
fi

# The clone.  A private repository wants a key or a credential helper of this user's: never a password in the URL.
command -v git > /dev/null || wrong "a night needs git, and there is none on this machine"
mkdir -p -m 700 ~/.palimpsest
from=${1:-$(git -C "$here" remote get-url origin 2> /dev/null || git -C "$here" rev-parse --show-toplevel 2> /dev/null || true)}
branch=${2:-$([ -n "${1:-}" ] || git -C "$here" symbolic-ref --quiet --short HEAD 2> /dev/null || true)}
[ -n "$from" ] || wrong "$here lies in no clone: bash cluster/nightly/install.sh REPOSITORY [BRANCH]"
if [ -d "$root/.git" ]; then
  git -C "$root" remote set-url origin "$from"
else
  git clone --quiet "$from" "$root" || wrong "$from cannot be cloned"
fi
branch=${branch:-$(git -C "$root" ls-remote --symref origin HEAD | sed -n 's#^ref: refs/heads/\(.*\)\tHEAD#\1#p')}
git -C "$root" fetch --quiet origin "$branch" || wrong "$from has no branch $branch"
git -C "$root" checkout --quiet --detach FETCH_HEAD
[ -f "$root/cluster/nightly/packages.sh" ] || wrong "$branch of $from is older than this script: it has no cluster/nightly/packages.sh"
bash "$root/cluster/nightly/packages.sh" || wrong "the packages cannot be installed"

# Settings, which only run.sh reads.
umask 077
touch "$settings"
chmod 600 "$settings"
if grep -q '^PALIMPSEST_BRANCH=' "$settings"; then
  sed -i "s#^PALIMPSEST_BRANCH=.*#PALIMPSEST_BRANCH=$branch#" "$settings"
else
  echo "PALIMPSEST_BRANCH=$branch" >> "$settings"
fi

out=$([ ! -f ~/.palimpsest/env ] || . ~/.palimpsest/env; echo "${PALIMPSEST_OUT:-$root/results}")
for unit in palimpsest-nightly.service palimpsest-nightly.timer palimpsest-nightly-failed@.service; do
  sed -e "s#@USER@#$(id -un)#g" -e "s#@HOME@#$HOME#g" -e "s#@ROOT@#$root#g" -e "s#@OUT@#$out#g" "$here/$unit" | as_root tee "$into/$unit" > /dev/null
done
as_root systemctl daemon-reload
as_root systemctl enable --now palimpsest-nightly.timer
echo "install.sh: every night $branch of $from, in $root; settings in $settings"
