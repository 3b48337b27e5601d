"""Lua scripts of blobs outside of Redis: atomic for uploads, collections and moves.

An object is in one of three states, and each change between them is one script:

* in use: the hash `{bmt}:objects` has its record;
* loose: the set `{bmt}:loose` has its name, with the time since when. An upload makes it loose
  before it writes it, and PUBLISH puts it in use. So does a removal the other way;
* being removed: loose with a negative time, which PUBLISH does not put in use any more.
"""

# Redis 7.0: a script with a first line of flags may write where memory is used up.
ALLOW_OOM = "#!lua flags=allow-oom\n"

# KEYS: loose. ARGV: name.
ADD_LOOSE = (
    ALLOW_OOM
    + """
redis.call('ZADD', KEYS[1], redis.call('TIME')[1], ARGV[1])
return 1
"""
)

# KEYS: generation, blob, orphans, objects, loose. ARGV: generation at which the blob was an orphan,
# file digest, the same as 32 bytes, seconds since 1970 or ''.
# Removes nothing if the registry changed since: a new version may name the blob.
# Returns {1, bytes freed in Redis, record of the object} or {0}.
REMOVE = (
    ALLOW_OOM
    + """
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return {0} end
redis.call('HDEL', KEYS[3], ARGV[2])
local size = redis.call('STRLEN', KEYS[2])
redis.call('UNLINK', KEYS[2])
local record = redis.call('HGET', KEYS[4], ARGV[3]) or ''
if record ~= '' then
  local since = ARGV[4]
  if since == '' then since = redis.call('TIME')[1] end
  redis.call('HDEL', KEYS[4], ARGV[3])
  redis.call('ZADD', KEYS[5], since, ARGV[2] .. '-' .. string.match(record, '|(.*)$'))
end
return {1, size, record}
"""
)

# KEYS: loose, objects. ARGV: least age in seconds, then name and digest of 32 bytes of each.
# Returns the names that no upload can put in use any more.
CLAIM = (
    ALLOW_OOM
    + """
local now, claimed = tonumber(redis.call('TIME')[1]), {}
for i = 2, #ARGV, 2 do
  local since = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[i]) or 'nan')
  local record = redis.call('HGET', KEYS[2], ARGV[i + 1]) or ''
  if record ~= '' and string.match(record, '|(.*)$') == string.match(ARGV[i], '-(.*)$') then
    redis.call('ZREM', KEYS[1], ARGV[i])
  elseif since == since and (since < 0 or now - since >= tonumber(ARGV[1])) then
    redis.call('ZADD', KEYS[1], -now, ARGV[i])
    claimed[#claimed + 1] = ARGV[i]
  end
end
return claimed
"""
)

# KEYS: loose, objects. ARGV: name and digest of 32 bytes of each object that is in the store.
# Makes those loose that have no record. Returns their number.
ADOPT = (
    ALLOW_OOM
    + """
local now, found = redis.call('TIME')[1], 0
for i = 1, #ARGV, 2 do
  local record = redis.call('HGET', KEYS[2], ARGV[i + 1]) or ''
  if string.match(record, '|(.*)$') ~= string.match(ARGV[i], '-(.*)$') then
    found = found + redis.call('ZADD', KEYS[1], 'NX', now, ARGV[i])
  end
end
return found
"""
)

# KEYS: blob, objects, loose. ARGV: digest of 32 bytes, record of a written object, its name.
# Puts the object in use instead of the blob in Redis. Returns 1 if Redis has the blob no more.
TO_OBJECT = (
    ALLOW_OOM
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return 1 end
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then
  local since = tonumber(redis.call('ZSCORE', KEYS[3], ARGV[3]) or '-1')
  if since < 0 then return 0 end
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
  redis.call('ZREM', KEYS[3], ARGV[3])
end
redis.call('UNLINK', KEYS[1])
return 1
"""
)

# KEYS: blob, objects, loose. ARGV: digest of 32 bytes, record of the object, its name, bytes.
# Puts the bytes into Redis, and the object out of use. Returns 1 if the object had that record.
TO_REDIS = """
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[4])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], redis.call('TIME')[1], ARGV[3])
return 1
"""

# KEYS: place, objects, names. ARGV: URL of a server ('' for Redis alone), new id.
# A registry without masks begins at the URL. One with masks notes it, and goes on in Redis until
# they are moved. A record that has not been confirmed by the object store, as of a mistyped URL,
# gives way to another URL. The id stays, because an object store may have it already.
# Returns {URL, URL where blobs are written, id, claimed, 1 if there are objects}.
JOIN = (
    ALLOW_OOM
    + """
local url = redis.call('HGET', KEYS[1], 'url') or ''
local claimed = redis.call('HGET', KEYS[1], 'claimed') or ''
local used = redis.call('EXISTS', KEYS[2])
if ARGV[1] ~= '' and url ~= ARGV[1] and (url == '' or (claimed == '' and used == 0)) then
  url = ARGV[1]
  redis.call('HSETNX', KEYS[1], 'id', ARGV[2])
  redis.call('HSET', KEYS[1], 'url', url, 'writes', '')
  if redis.call('SCARD', KEYS[3]) == 0 then redis.call('HSET', KEYS[1], 'writes', url) end
end
local record = redis.call('HMGET', KEYS[1], 'writes', 'id')
return {url, record[1] or '', record[2] or '', claimed, used}
"""
)

# KEYS: place. ARGV: URL. Notes that the object store there has the registry's id.
# Returns 0 if another URL is recorded meanwhile.
CONFIRM = (
    ALLOW_OOM
    + """
if redis.call('HGET', KEYS[1], 'url') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'claimed', '1')
return 1
"""
)

# KEYS: place, objects. ARGV: URL. Forgets a URL that its object store has not confirmed.
FORGET = (
    ALLOW_OOM
    + """
local record = redis.call('HMGET', KEYS[1], 'url', 'claimed')
if record[1] ~= ARGV[1] or record[2] or redis.call('EXISTS', KEYS[2]) > 0 then return 0 end
redis.call('HDEL', KEYS[1], 'url', 'writes')
return 1
"""
)

# KEYS: place. ARGV: URL, new id, URL where blobs are written from now on.
TURN = (
    ALLOW_OOM
    + """
local url = redis.call('HGET', KEYS[1], 'url') or ''
if url == '' then
  redis.call('HSETNX', KEYS[1], 'id', ARGV[2])
  redis.call('HSET', KEYS[1], 'url', ARGV[1])
elseif url ~= ARGV[1] then return url end
redis.call('HSET', KEYS[1], 'writes', ARGV[3])
return ''
"""
)

# KEYS: place, objects, loose. Forgets the place if nothing is there any more, but not the id: a
# command that ends right here leaves it in the object store.
LEAVE = (
    ALLOW_OOM
    + """
if redis.call('EXISTS', KEYS[2], KEYS[3]) > 0 then return 0 end
if (redis.call('HGET', KEYS[1], 'writes') or '') ~= '' then return 0 end
redis.call('HDEL', KEYS[1], 'url', 'writes', 'claimed')
return 1
"""
)
