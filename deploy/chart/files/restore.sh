# Replaces the masks in /data by those of SNAPSHOT in /backup, once; with AGAIN, each time.
: "${SNAPSHOT:?is empty; set it to the name of a file in the backup}"
data=${DATA:-/data} backup=${FOLDER:-/backup} socket=${SOCKET:-/tmp/restore.sock}
if [ -e "$data/restored-$SNAPSHOT" ] && [ -z "${AGAIN:-}" ]; then
  echo "$SNAPSHOT was restored before"; exit 0
fi
if [ ! -e "$backup/$SNAPSHOT" ]; then
  echo "$SNAPSHOT is not in the backup:"; ls -l "$backup"; exit 1
fi
# A server that runs on the folder would write over it.
if [ -n "${HOST:-}" ] && valkey-cli -h "$HOST" ping 2>/dev/null | grep -Eq 'PONG|NOAUTH|LOADING|WRONGPASS|DENIED'; then
  echo "Valkey runs at $HOST; stop it first"; exit 1
fi
valkey-check-rdb "$backup/$SNAPSHOT"
# What was there stays until the next restoration.
rm -rf "$data/appendonlydir.before"
if [ -e "$data/appendonlydir" ]; then mv "$data/appendonlydir" "$data/appendonlydir.before"; fi
cp "$backup/$SNAPSHOT" "$data/dump.rdb"
# A server with an append-only file does not read a snapshot, so it is read first.
valkey-server --dir "$data" --appendonly no --save "" --port 0 --unixsocket "$socket" &
server=$!
until valkey-cli -s "$socket" ping 2>/dev/null | grep -q PONG; do
  kill -0 $server
  sleep "${PAUSE:-1}"
done
valkey-cli -s "$socket" config set appendonly yes
while valkey-cli -s "$socket" info persistence | grep -Eq 'aof_rewrite_(in_progress|scheduled):1'; do sleep "${PAUSE:-1}"; done
valkey-cli -s "$socket" info persistence | grep -q aof_last_bgrewrite_status:ok
valkey-cli -s "$socket" shutdown nosave || true
wait $server
rm "$data/dump.rdb"
touch "$data/restored-$SNAPSHOT"
echo "$SNAPSHOT is restored"
