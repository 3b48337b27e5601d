# Writes a snapshot of Valkey at HOST into /backup, checks it, and keeps the newest KEEP.
folder=${FOLDER:-/backup}
# Without the line's end of an editor that wrote the Secret.
REDISCLI_AUTH=$(printf %s "${REDISCLI_AUTH:-}")
file="$folder/masks-$(date -u +%Y%m%dT%H%M%SZ).rdb"
# A snapshot that was cut must not look like a whole one.
rm -f "$folder"/*.part
valkey-cli -h "$HOST" -p "${PORT:-6379}" --rdb "$file.part"
valkey-check-rdb "$file.part"
mv "$file.part" "$file"
ls -1 "$folder"/masks-*.rdb | sort -r | tail -n +$((KEEP + 1)) | while read -r old; do
  rm -- "$old"
done
ls -l "$folder"
