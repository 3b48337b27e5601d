# Start Valkey with the password in VALKEY_PASSWORD, bounded by MAXMEMORY, in the folder DATA.

# In hexadecimal in a file: any character may be in a password, and others see command lines. A
# line's end is the editor's that wrote the Secret.
umask 077
hex=$(printf %s "$(printf %s "$VALKEY_PASSWORD")" | od -An -v -tx1 | tr -d ' \n' | sed 's/../\\x&/g')
if [ -z "$hex" ]; then echo "the password is empty; fill the Secret"; exit 1; fi
printf 'requirepass "%s"\n' "$hex" >"${AUTH_FILE:-/tmp/auth.conf}"
exec valkey-server "${AUTH_FILE:-/tmp/auth.conf}" --dir "${DATA:-/data}" --appendonly yes --appendfsync everysec \
  --maxmemory "$MAXMEMORY" --maxmemory-policy noeviction
