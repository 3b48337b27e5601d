"""Lua scripts of retention, in the form of `registry/lua.py`: checks first, then writes."""

from bmt_server.registry.blobs.lua import ALLOW_OOM
from bmt_server.registry.lua import ADD_EVENT

# KEYS[8]: holds. ARGV: path, rule that the caller applies ('' for none of the name's own), rev of
# the name and number of its versions as the caller knows them, time in seconds since 1970,
# digest...
RETAIN = (
    ALLOW_OOM
    + ADD_EVENT
    + """
if redis.call('SISMEMBER', KEYS[3], ARGV[1]) == 0 then return {'unknown', ''} end
local head, held, gone = redis.call('HGETALL', KEYS[1]), {}, {}
local rule, rev = '', ''
for i = 1, #head, 2 do
  held[head[i + 1]] = true
  if head[i] == 'retention' then rule = head[i + 1] end
  if head[i] == 'rev' then rev = head[i + 1] end
end
if rule ~= ARGV[2] or rev ~= ARGV[3] or redis.call('HLEN', KEYS[2]) ~= tonumber(ARGV[4]) then
  touch()
  return {'unchanged', ''}
end
for i = 6, #ARGV do
  local used = tonumber(redis.call('HGET', KEYS[8], ARGV[1] .. '@' .. ARGV[i]) or '0')
  if not held[ARGV[i]] and used <= tonumber(ARGV[5])
      and redis.call('HDEL', KEYS[2], ARGV[i]) == 1 then
    gone[#gone + 1] = ARGV[i]
  end
end
local changed = table.concat(gone, ' ')
if #gone > 0 then add_event('delete', changed) else touch() end
return {'ok', changed}
"""
)

# KEYS: holds. ARGV: time in seconds since 1970, end of the holds, field... Ended holds go.
HOLD = (
    ALLOW_OOM
    + """
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if tonumber(all[i + 1]) <= tonumber(ARGV[1]) then redis.call('HDEL', KEYS[1], all[i]) end
end
for i = 3, #ARGV do redis.call('HSET', KEYS[1], ARGV[i], ARGV[2]) end
return 1
"""
)

# ARGV: path, rule; '' removes it
SET_RETENTION = (
    ALLOW_OOM
    + ADD_EVENT
    + """
if redis.call('SISMEMBER', KEYS[3], ARGV[1]) == 0 then return {'unknown', ''} end
if ARGV[2] == '' then redis.call('HDEL', KEYS[1], 'retention')
else redis.call('HSET', KEYS[1], 'retention', ARGV[2]) end
add_event('pin', '')
return {'ok', ''}
"""
)
