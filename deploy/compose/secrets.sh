# Write .env from compose/env.example with random passwords. An .env that exists stays as it is.
set -eu
cd "$(dirname "$0")/.."
if [ -e .env ]; then
  echo "$(pwd)/.env exists and stays as it is"
  exit
fi
random() { od -An -v -tx1 -N24 /dev/urandom | tr -d ' \n'; }
umask 077
sed -e "s/^VALKEY_PASSWORD=\$/&$(random)/" -e "s/^GRAFANA_PASSWORD=\$/&$(random)/" compose/env.example >.env.new
mv .env.new .env
echo "wrote $(pwd)/.env: set COMPOSE_PROFILES and BMT_MODEL there"
