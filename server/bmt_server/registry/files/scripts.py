"""Lua scripts of the files' records: each checks first and writes last.

KEYS: records of the tenant, bytes by tenant, written. ARGV[1]: the tenant. Each returns
{outcome, detail}, and writes when it succeeds, because `durability.py` waits for that write.
"""

from __future__ import annotations

from bmt_server.registry.blobs.lua import ALLOW_OOM

# ARGV: tenant, id, record, bytes, most files, most bytes (0: any number)
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
return {'ok', ''}
"""

# ARGV: tenant, id, record before, record after
REPLACE = (
    ALLOW_OOM
    + """
if redis.call('HGET', KEYS[1], ARGV[2]) ~= ARGV[3] then return {'unknown', ''} end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[4])
return {'ok', ''}
"""
)

# ARGV: tenant, id, bytes
REMOVE = (
    ALLOW_OOM
    + """
if redis.call('HDEL', KEYS[1], ARGV[2]) == 0 then return {'unknown', ''} end
redis.call('HINCRBY', KEYS[2], ARGV[1], -tonumber(ARGV[3]))
redis.call('HSET', KEYS[3], 'path', ARGV[2])
return {'ok', ''}
"""
)
