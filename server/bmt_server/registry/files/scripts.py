"""Lua scripts of the files' records: each checks first and writes last.

KEYS: records of the tenant, bytes by tenant, written, ids of its files that are ready and of those
that arrive or go, each by time of creation. ARGV[1]: the tenant. Each returns
{outcome, detail}, and writes when it succeeds, because `durability.py` waits for that write.
"""

from __future__ import annotations

from bmt_server.registry.blobs.lua import ALLOW_OOM

# ARGV: tenant, id, record, bytes, most files, most bytes (0: any number), created
RESERVE = """
if redis.call('HEXISTS', KEYS[1], ARGV[2]) == 1 then return {'exists', ''} end
local files, bytes = redis.call('HLEN', KEYS[1]), redis.call('HGET', KEYS[2], ARGV[1]) or '0'
local most_files, most_bytes = tonumber(ARGV[5]), tonumber(ARGV[6])
if (most_files > 0 and files + 1 > most_files)
   or (most_bytes > 0 and tonumber(bytes) + tonumber(ARGV[4]) > most_bytes) then
  return {'over_quota', files .. ' ' .. bytes}
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
redis.call('HINCRBY', KEYS[2], ARGV[1], ARGV[4])
redis.call('ZADD', KEYS[5], ARGV[7], ARGV[2])
return {'ok', ''}
"""

# ARGV: tenant, id, record before, record after, 1 for one that is ready then, created
REPLACE = (
    ALLOW_OOM
    + """
if redis.call('HGET', KEYS[1], ARGV[2]) ~= ARGV[3] then return {'unknown', ''} end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[4])
local into, from = KEYS[5], KEYS[4]
if ARGV[5] == '1' then into, from = KEYS[4], KEYS[5] end
redis.call('ZREM', from, ARGV[2])
redis.call('ZADD', into, ARGV[6], ARGV[2])
return {'ok', ''}
"""
)

# ARGV: tenant, id, bytes
REMOVE = (
    ALLOW_OOM
    + """
if redis.call('HDEL', KEYS[1], ARGV[2]) == 0 then return {'unknown', ''} end
redis.call('HINCRBY', KEYS[2], ARGV[1], -tonumber(ARGV[3]))
redis.call('ZREM', KEYS[4], ARGV[2])
redis.call('ZREM', KEYS[5], ARGV[2])
redis.call('HSET', KEYS[3], 'path', ARGV[2])
return {'ok', ''}
"""
)

# Of a record that cannot be read no one knows the bytes: those of the others are added again.
# ARGV: tenant, id, record that is expected
FORGET = (
    ALLOW_OOM
    + """
if redis.call('HGET', KEYS[1], ARGV[2]) ~= ARGV[3] then return {'unknown', ''} end
redis.call('HDEL', KEYS[1], ARGV[2])
local bytes = 0
for _, value in ipairs(redis.call('HVALS', KEYS[1])) do
  local read, record = pcall(cjson.decode, value)
  if read and type(record) == 'table' and type(record.bytes) == 'number' then
    bytes = bytes + record.bytes
  end
end
redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f', bytes))
redis.call('ZREM', KEYS[4], ARGV[2])
redis.call('ZREM', KEYS[5], ARGV[2])
redis.call('HSET', KEYS[3], 'path', ARGV[2])
return {'ok', ''}
"""
)
