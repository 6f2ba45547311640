#!/usr/bin/env bash
# PostgreSQL for MLflow on this machine: Debian's or Ubuntu's package, a role named like the user, two databases.
# It is reached through its socket and knows the user by the kernel's word (peer), so there is no password to keep,
# and no port.  May run again and again.
set -euo pipefail
command -v pg_dump > /dev/null && ls /usr/lib/postgresql/*/bin/postgres > /dev/null 2>&1 || {
  sudo apt-get update -q
  sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q postgresql
}
pg_isready -q -h /var/run/postgresql || sudo pg_ctlcluster "$(ls /usr/lib/postgresql | sort -n | tail -1)" main start
for _ in $(seq 60); do pg_isready -q -h /var/run/postgresql && break; sleep 0.5; done

cd /                                # the postgres user may not see our folder
as_postgres() { sudo -n -u postgres psql -h /var/run/postgresql -d postgres -v ON_ERROR_STOP=1 -qAt "$@"; }
user=$(id -un)
[ -n "$(as_postgres -c "select 1 from pg_roles where rolname = '$user'")" ] || as_postgres -c "create role \"$user\" login"
for database in mlflow mlflow_auth; do
  [ -n "$(as_postgres -c "select 1 from pg_database where datname = '$database'")" ] ||
    as_postgres -c "create database $database owner \"$user\""
done
