# Start bmt-server with an administrator's key, and make a key of scope `metrics` for Prometheus.
set -eu
KEYS="${KEYS:-/keys}"

# Run a command and keep its output as a key, which readers see whole or not at all. MODE: of the file.
keep() {
  file="$1" mode="$2"
  shift 2
  (umask 077 && "$@" >"$file.new")
  [ -s "$file.new" ] || { echo "no key for $file" >&2; exit 1; }
  chmod "$mode" "$file.new"
  mv "$file.new" "$file"
}

if [ -z "${BMT_ADMIN_KEY:-}" ]; then
  [ -s "$KEYS/admin" ] || keep "$KEYS/admin" 600 bmt-server keys generate
  BMT_ADMIN_KEY="$(cat "$KEYS/admin")"
  echo "The administrator's API key: docker compose exec ${SERVICE:-server} cat $KEYS/admin"
fi
export BMT_ADMIN_KEY

# An emptied registry, or another one, does not know the key of the former. While the registry is away, a server with a
# key starts all the same: it waits for the registry itself.
if known="$(bmt-server keys list --json)"; then
  if ! [ -s "$KEYS/metrics" ] || ! printf %s "$known" | grep -q '"label": "prometheus"'; then
    keep "$KEYS/metrics" 644 bmt-server keys create --scope metrics --label prometheus
    echo "made a key for Prometheus: $KEYS/metrics"
  fi
elif ! [ -s "$KEYS/metrics" ]; then
  echo "no key for Prometheus without the registry; the container starts again" >&2
  exit 1
fi

exec bmt-server "$@"
