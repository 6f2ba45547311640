#!/usr/bin/env bash
# A database that is not on this machine, and outlives it: what up.sh needs in order to use one.  May run again and again.
#
#     bash cluster/mlflow/elsewhere.sh postgresql+psycopg2://USER@HOST/mlflow?sslmode=require
#
#   client     psql and pg_dump, for backups and restores
#   password   stands in ~/.pgpass; on AWS, SECRET names where it is kept (Secrets Manager), and it is fetched into that file
#   users      mlflow_auth, made beside mlflow
set -euo pipefail
umask 077
url=$1

command -v pg_dump > /dev/null || {
  sudo apt-get update -q
  sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q postgresql-client
}

[ -z "${SECRET:-}" ] || python - "$url" "$SECRET" <<'FETCH'
import json, os, sys
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy.engine import make_url

url, secret = make_url(sys.argv[1]), sys.argv[2]
try:
    client = boto3.client("secretsmanager", region_name=secret.split(":")[3])
    password = json.loads(client.get_secret_value(SecretId=secret)["SecretString"])["password"]
except (BotoCoreError, ClientError, IndexError) as error:
    sys.exit(f"elsewhere.sh: SECRET={secret} cannot be read: {error}")
host = url.host or url.query.get("host", "localhost")


def word(text: str) -> str:
    return text.replace("\\", r"\\").replace(":", r"\:")


known = f"{word(host)}:*:*:{word(url.username)}:"
path = Path("~/.pgpass").expanduser()
others = [line for line in path.read_text().splitlines() if not line.startswith(known)] if path.exists() else []
beside = path.with_name(".pgpass.new")
beside.write_text("\n".join([*others, known + word(password), ""]))
os.replace(beside, path)
FETCH
[ ! -f ~/.pgpass ] || chmod 600 ~/.pgpass          # rsync keeps the sender's mode, and libpq takes no other

ask() { psql -X -w -qAt -v ON_ERROR_STOP=1 "${url/+psycopg2/}" -c "$1"; }
theirs=$(ask 'show server_version_num' 2>&1) || {
  echo "elsewhere.sh: no database at BACKEND=$url: $(tr '\n' ' ' <<< "$theirs")" >&2; exit 2; }
theirs=$((theirs / 10000)) ours=$(pg_dump --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/')
[ "$ours" -ge "$theirs" ] ||
  echo "elsewhere.sh: pg_dump $ours saves no PostgreSQL $theirs: there will be no backups but the database's own" >&2

base=${url%%\?*} users=${base##*/}_auth
[ -n "$(ask "select 1 from pg_database where datname = '$users'")" ] || ask "create database \"$users\""
