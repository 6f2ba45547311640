#!/usr/bin/env bash
# Make one machine ready for Palimpsest: secrets, environment, shared folder, Python packages.  Run by `ray up` on the
# head and on every worker; may run again and again (on cloud workers Ray runs it twice).
#
#     SHARED=/results NFS=host:/export STORE=s3://bucket/stages bash cluster/node.sh
#
#   SHARED   the folder for --out, which all machines see                                (needed)
#   NFS      what to mount there, also after a reboot; without it, SHARED must be there already
#   NFS_OPTIONS  how; EFS also wants noresvport, which an export with `secure` refuses
#   STORE    where stages go, for --store; without it, into --out
#   SSH_FROM where SSH may come from (CIDR), for clouds whose own rules Ray leaves open: a firewall on this machine
#   VENV     a virtual environment that is there already; without it, ~/venv is made to the versions of constraints.txt
set -euo pipefail

UV=0.13.8           # installs Python and the packages
PYTHON=3.11         # the one that everything is tested with; all machines of a cluster need the same
: "${SHARED:?names the folder that all machines see}"
here=$(cd "$(dirname "$0")/.." && pwd)

chmod 700 ~/.ray ~/.palimpsest
chmod 600 ~/.ray/auth_token ~/.palimpsest/mlflow_password      # rsync keeps the modes of the sender's files

venv=${VENV:-$HOME/venv}
cat > ~/.palimpsest/env <<ENV
export PATH="$venv/bin:\$HOME/.local/bin:\$PATH"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# Where \`ray\` finds cluster/spot.py.  Last: bash reads this again below sshd, and a job's own tree comes first.
case ":\${PYTHONPATH:-}:" in *":$here:"*) ;; *) export PYTHONPATH="\${PYTHONPATH:+\$PYTHONPATH:}$here" ;; esac
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true HF_HUB_DISABLE_TELEMETRY=1
export PALIMPSEST_OUT="$SHARED" PALIMPSEST_STORE="${STORE:-$SHARED/stages}" HF_HOME="$SHARED/huggingface"
[ ! -f ~/.palimpsest/head ] || . ~/.palimpsest/head
ENV
# First line of .bashrc, since many end early where nobody types.
line='. ~/.palimpsest/env'
touch ~/.bashrc
grep -qxF "$line" ~/.bashrc || { printf '%s\n' "$line" | cat - ~/.bashrc > ~/.bashrc.new; mv ~/.bashrc.new ~/.bashrc; }

if [ -n "${SSH_FROM:-}" ]; then
  python3 - "$SSH_FROM" "${SSH_CLIENT%% *}" <<'INSIDE'
import ipaddress, sys
network, client = ipaddress.ip_network(sys.argv[1]), ipaddress.ip_address(sys.argv[2] or "127.0.0.1")
if network.prefixlen < 8:
    sys.exit(f"node.sh: SSH_FROM={network} is half of the world; name your own address or range")
if client not in network and not client.is_private:
    sys.exit(f"node.sh: you come from {client}, and SSH_FROM={network} would lock you out")
INSIDE
  sudo ufw default deny incoming
  for inside in 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16; do sudo ufw allow from "$inside"; done       # the other machines
  sudo ufw allow proto tcp from "$SSH_FROM" to any port 22
  sudo ufw --force enable
fi

if [ -n "${NFS:-}" ]; then
  command -v mount.nfs > /dev/null || { sudo apt-get update -q; sudo apt-get install -y -q nfs-common; }
  sudo mkdir -p "$SHARED"
  fstab=${FSTAB:-/etc/fstab}          # for good: after a reboot a timer would write into the empty folder underneath
  line="$NFS $SHARED nfs ${NFS_OPTIONS:-nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2},_netdev,nofail 0 0"
  grep -qxF "$line" "$fstab" || {
    awk -v at="$SHARED" '$2 != at' "$fstab" | sudo tee "$fstab.new" > /dev/null
    echo "$line" | sudo tee -a "$fstab.new" > /dev/null
    sudo chmod 644 "$fstab.new"; sudo mv "$fstab.new" "$fstab"
    [ ! -d /run/systemd/system ] || sudo systemctl daemon-reload
  }
  mountpoint -q "$SHARED" || sudo mount "$SHARED"
  [ -w "$SHARED" ] || sudo chown "$(id -u):$(id -g)" "$SHARED"
fi
probe="$SHARED/.writable-$(hostname)-$$"
{ mkdir -p "$SHARED" && touch "$probe" && rm "$probe"; } 2> /dev/null || {
  echo "node.sh: $(hostname) cannot write into $SHARED.  Mount it, or name what to mount with NFS=" >&2; exit 1; }

if [ -z "${VENV:-}" ]; then
  export PATH="$HOME/.local/bin:$PATH"
  if ! command -v uv > /dev/null; then
    python3 -m pip --version > /dev/null 2>&1 || { sudo apt-get update -q; sudo apt-get install -y -q python3-pip; }
    # By its variable, since the pip of Ubuntu 22.04 does not know the option, and that of 24.04 insists on it.
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user "uv==$UV"
  fi
  uv venv --quiet --allow-existing --python "$PYTHON" "$venv"
  uv pip install --quiet --python "$venv/bin/python" --constraint "$here/constraints.txt" \
     --editable "$here[${EXTRAS:-cluster,paper}]"
fi
"$venv/bin/python" - <<'CHECK'
import importlib.metadata, sys
print(f"node.sh: Python {sys.version.split()[0]}, Ray {importlib.metadata.version('ray')}, "
      f"torch {importlib.metadata.version('torch')}")
CHECK
