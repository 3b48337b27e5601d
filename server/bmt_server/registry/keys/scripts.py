"""Lua scripts of changes of API keys. The event makes all servers look their keys up again.

KEYS: hash of API keys, events, set of the environment's keys, hash of limits, set of ids. Each
script returns {outcome, …}: `taken` for an id that another key has. The set has the ids of 16
digits, which these scripts alone give; former versions give ids of 8.
"""

from bmt_server.registry.lua import ALLOW_OOM

_EVENT = """
local function add_event()
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', 10000, '*',
             'where', '', 'kind', 'keys', 'generation', 0)
end
"""

# ARGV: field, record, '1' if only for a registry without keys, id.
CREATE = """
if ARGV[3] ~= '' then
  for _, record in ipairs(redis.call('HVALS', KEYS[1])) do
    if not string.find(record, '"scopes": %[%]') then return {'exists', ''} end
  end
end
if redis.call('SADD', KEYS[5], ARGV[4]) == 0 then return {'taken', ''} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return {'ok', ''}
"""

# A key of the environment whose record is gone was revoked, and stays so.
# ARGV: field, record, record that it replaces or '', id. Returns the record that stays.
IMPORT = (
    ALLOW_OOM
    + _EVENT
    + """
local there = redis.call('HGET', KEYS[1], ARGV[1])
if there and there ~= ARGV[3] then
  redis.call('SADD', KEYS[3], ARGV[1])
  return {'known', there}
end
if not there and redis.call('SISMEMBER', KEYS[3], ARGV[1]) == 1 then return {'revoked', ''} end
if not there and redis.call('SADD', KEYS[5], ARGV[4]) == 0 then return {'taken', ''} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('SADD', KEYS[3], ARGV[1])
add_event()
return {'ok', ARGV[2]}
"""
)

# ARGV: field, record that is expected, record to leave behind for a key of the environment, `1` if
# its label says that it is one: former versions know no set of them. Field of its limits, id.
REVOKE = (
    ALLOW_OOM
    + _EVENT
    + """
local there = redis.call('HGET', KEYS[1], ARGV[1])
if there ~= ARGV[2] then return {'changed', ''} end
if ARGV[4] == '1' or redis.call('SISMEMBER', KEYS[3], ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
redis.call('HDEL', KEYS[4], ARGV[5])
redis.call('SREM', KEYS[5], ARGV[6])
add_event()
return {'ok', ''}
"""
)

# The new key keeps the limits of the old one, or a rotation would end what an operator has set.
# ARGV: field, record that is expected, record with the end of the overlap, field and record of the
# new key, fields of the limits of both, id of the new key.
ROTATE = (
    ALLOW_OOM
    + _EVENT
    + """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return {'changed', ''} end
if redis.call('SADD', KEYS[5], ARGV[8]) == 0 then return {'taken', ''} end
redis.call('HSET', KEYS[1], ARGV[4], ARGV[5], ARGV[1], ARGV[3])
local limits = redis.call('HGET', KEYS[4], ARGV[6])
if limits then redis.call('HSET', KEYS[4], ARGV[7], limits) end
add_event()
return {'ok', ''}
"""
)

# ARGV: field, record that is expected, record with another expiry.
PROLONG = (
    ALLOW_OOM
    + _EVENT
    + """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return {'changed', ''} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
add_event()
return {'ok', ''}
"""
)
