"""Lua scripts of the registry's writes: atomic for readers, checks before writes.

KEYS: name hash, versions hash, set of names, events, id counter, generation, written; PUBLISH has
five more: blob, objects, loose objects, place (`blobs/lua.py`), newest versions of the tenant
(`usage/quota.py`).
ARGV[1] is `<tenant>/<name>`, called `path` here. Each script returns {outcome, detail}.

A script that succeeds writes, even if it changes nothing: `durability.py` waits for that write.
All scripts but PUBLISH run on a full server too, or it could not be emptied.
"""

from __future__ import annotations

from bmt_server.registry.blobs.lua import ALLOW_OOM as ALLOW_OOM
from bmt_server.registry.usage import quota

# changed: digests of the versions that changed, with blanks between; nil if all may have.
ADD_EVENT = """
local function add_event(kind, changed)
  local generation = redis.call('INCR', KEYS[6])
  local event = {'where', ARGV[1], 'kind', kind, 'generation', generation}
  if changed then
    event[7], event[8] = 'changed', changed
  end
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', 10000, '*', unpack(event))
end
local function touch()
  redis.call('HSET', KEYS[7], 'path', ARGV[1])
end
"""

# Ends the canary and the shadow of an alias (`canary/split.py`); returns the number of fields.
END_SPLIT = """
local function end_split(alias)
  return redis.call('HDEL', KEYS[1], 'split:' .. alias, 'canary:' .. alias, 'shadow:' .. alias)
end
"""

# ARGV: path, digest, version JSON, if-match, if-none-match, expires ('' for never), file digest of
# 32 bytes, URL where the blob was written, record of its new object, record of a damaged one,
# quota, alias... ('' where there is none)
PUBLISH = (
    ADD_EVENT
    + END_SPLIT
    + quota.LUA
    + """
local digest = ARGV[2]
local current = redis.call('HGET', KEYS[1], 'latest') or ''
local elsewhere = redis.call('HGET', KEYS[11], 'writes') or ''
if elsewhere ~= ARGV[8] then return {'blobs_elsewhere', elsewhere} end
local object, file = redis.call('HGET', KEYS[9], ARGV[7]) or '', string.match(KEYS[8], '%x+$')
local function name(record) return file .. '-' .. string.match(record, '|(.*)$') end
local written = ARGV[9] ~= '' and object == ARGV[10]
if written then
  local since = tonumber(redis.call('ZSCORE', KEYS[10], name(ARGV[9])) or '-1')
  if since < 0 then return {'blob_unknown', ''} end
elseif object == '' and (ARGV[9] ~= '' or redis.call('EXISTS', KEYS[8]) == 0) then
  return {'blob_unknown', ''}
end
if ARGV[4] ~= '' and current ~= ARGV[4] then return {'conflict', current} end
if ARGV[5] ~= '' and current ~= '' then return {'conflict', current} end
if redis.call('HEXISTS', KEYS[2], digest) == 0 then
  local refused, stored = check_quota(file)
  if refused then return {refused, stored} end
end
if written then
  redis.call('HSET', KEYS[9], ARGV[7], ARGV[9])
  redis.call('ZREM', KEYS[10], name(ARGV[9]))
  if ARGV[10] ~= '' then
    redis.call('ZADD', KEYS[10], redis.call('TIME')[1], name(ARGV[10]))
  end
  redis.call('UNLINK', KEYS[8])
end
local outcome = 'unchanged'
local known = redis.call('HGET', KEYS[2], digest)
if current ~= digest or not known then
  local rev = redis.call('HINCRBY', KEYS[1], 'rev', 1)
  if known then
    outcome = 'moved'
    local rest = string.match(known, '^%d+|(.*)$')
    redis.call('HSET', KEYS[2], digest, rev .. '|' .. rest)
  else
    outcome = 'created'
    local id = redis.call('INCR', KEYS[5])
    local parent = current ~= digest and current or ''
    redis.call('HSET', KEYS[2], digest,
               rev .. '|' .. id .. '|' .. parent .. '|' .. ARGV[3])
  end
  redis.call('SADD', KEYS[3], ARGV[1])
  redis.call('HSET', KEYS[1], 'latest', digest)
end
local moved = outcome ~= 'unchanged'
if (redis.call('HGET', KEYS[1], 'expires') or '') ~= ARGV[6] then
  if ARGV[6] == '' then redis.call('HDEL', KEYS[1], 'expires')
  else redis.call('HSET', KEYS[1], 'expires', ARGV[6]) end
  moved = true
end
for i = 12, #ARGV do
  if redis.call('HGET', KEYS[1], 'alias:' .. ARGV[i]) ~= digest then
    end_split(ARGV[i])
    redis.call('HSET', KEYS[1], 'alias:' .. ARGV[i], digest)
    moved = true
  end
end
if moved then add_event('publish', digest) else touch() end
if outcome == 'created' then count_quota(file) end
return {outcome, current}
"""
)

# ARGV: path, alias, digest ('' removes), if-match. The alias has neither canary nor shadow then.
SET_ALIAS = (
    ALLOW_OOM
    + ADD_EVENT
    + END_SPLIT
    + """
local field = 'alias:' .. ARGV[2]
if ARGV[2] == 'latest' then field = 'latest' end
local current = redis.call('HGET', KEYS[1], field) or ''
if redis.call('SISMEMBER', KEYS[3], ARGV[1]) == 0 then return {'unknown', ''} end
if ARGV[4] ~= '' and current ~= ARGV[4] then return {'conflict', current} end
if ARGV[3] == '' then
  if current == '' then return {'unknown', ''} end
  end_split(ARGV[2])
  redis.call('HDEL', KEYS[1], field)
else
  if redis.call('HEXISTS', KEYS[2], ARGV[3]) == 0 then return {'unknown', ''} end
  local ended = end_split(ARGV[2])
  if current == ARGV[3] and ended == 0 then touch() return {'ok', current} end
  if current ~= ARGV[3] and field == 'latest' then redis.call('HINCRBY', KEYS[1], 'rev', 1) end
  redis.call('HSET', KEYS[1], field, ARGV[3])
end
add_event('alias', '')
return {'ok', current}
"""
)

# ARGV: path, if-match, expired by: seconds since 1970, or '' for a name of any expiry; '1' to keep
# a name that has an alias, a pin or a rule of retention
DELETE_NAME = (
    ALLOW_OOM
    + ADD_EVENT
    + """
if redis.call('SISMEMBER', KEYS[3], ARGV[1]) == 0 then return {'unknown', ''} end
local current = redis.call('HGET', KEYS[1], 'latest') or ''
if ARGV[2] ~= '' and current ~= ARGV[2] then return {'conflict', current} end
if ARGV[4] == '1' then
  local head = redis.call('HGETALL', KEYS[1])
  for i = 1, #head, 2 do
    local set = head[i] == 'retention' or (head[i] == 'pinned' and head[i + 1] == '1')
    if set or string.find(head[i], '^alias:') then return {'kept', head[i]} end
  end
end
if ARGV[3] ~= '' then
  local expires = tonumber(redis.call('HGET', KEYS[1], 'expires') or '')
  local pinned = redis.call('HGET', KEYS[1], 'pinned') == '1'
  if not expires or expires > tonumber(ARGV[3]) or pinned then
    touch()
    return {'unchanged', current}
  end
end
local rev = redis.call('HINCRBY', KEYS[1], 'rev', 1)
redis.call('SREM', KEYS[3], ARGV[1])
redis.call('UNLINK', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], 'rev', rev)
add_event('delete')
return {'ok', current}
"""
)

# ARGV: path, digest
DELETE_VERSION = (
    ALLOW_OOM
    + ADD_EVENT
    + """
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 0 then return {'unknown', ''} end
local head = redis.call('HGETALL', KEYS[1])
for i = 1, #head, 2 do
  if head[i + 1] == ARGV[2] then
    if head[i] == 'latest' then return {'in_use', 'latest'} end
    local alias = string.match(head[i], '^alias:(.*)$')
    if alias then return {'in_use', alias} end
    local part = string.match(head[i], '^canary:.*$') or string.match(head[i], '^shadow:.*$')
    if part then return {'in_use', part} end
  end
end
redis.call('HDEL', KEYS[2], ARGV[2])
add_event('delete', ARGV[2])
return {'ok', ''}
"""
)

# ARGV: path, digest...
PRUNE = (
    ALLOW_OOM
    + ADD_EVENT
    + """
if redis.call('SISMEMBER', KEYS[3], ARGV[1]) == 0 then return {'unknown', ''} end
local head, held, gone = redis.call('HGETALL', KEYS[1]), {}, {}
for i = 1, #head, 2 do held[head[i + 1]] = true end
for i = 2, #ARGV do
  if not held[ARGV[i]] and redis.call('HDEL', KEYS[2], ARGV[i]) == 1 then
    gone[#gone + 1] = ARGV[i]
  end
end
local changed = table.concat(gone, ' ')
if #gone > 0 then add_event('delete', changed) else touch() end
return {'ok', changed}
"""
)

# ARGV: path, '1' or ''
SET_PIN = (
    ALLOW_OOM
    + ADD_EVENT
    + """
if redis.call('SISMEMBER', KEYS[3], ARGV[1]) == 0 then return {'unknown', ''} end
redis.call('HSET', KEYS[1], 'pinned', ARGV[2])
add_event('pin', '')
return {'ok', ''}
"""
)

# KEYS: lease. ARGV: milliseconds.
TAKE_LEASE = (
    ALLOW_OOM
    + """
return redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[1]) and 1 or 0
"""
)
