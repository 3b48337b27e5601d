"""Lua scripts of work: compare the record, then change everything with it.

The state of a job or a batch, its places in the queue and among the leases, its tenant's seconds
and the items of its list change together or not at all, so it ends once, whoever else tries.
"""

from __future__ import annotations

from bmt_server.registry.blobs.lua import ALLOW_OOM

# A new record, within the bounds on its tenant's: counted here, or requests at once pass it.
# Ended ones, the oldest first, make room for it.
# KEYS: records, queue, seconds by tenant, those of the tenant, those that have not ended, written.
# ARGV: id, record, path, score in the queue, tenant, least ms of the tenant, created, most open,
#       most kept, prefix of the keys of lists, item...
CREATE = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return {'exists', ''} end
if redis.call('SCARD', KEYS[5]) >= tonumber(ARGV[8]) then return {'too_many', ''} end
local kept = redis.call('ZCARD', KEYS[4])
if kept >= tonumber(ARGV[9]) then
  for _, id in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
    if kept < tonumber(ARGV[9]) then break end
    if redis.call('SISMEMBER', KEYS[5], id) == 0 then
      redis.call('HDEL', KEYS[1], id)
      redis.call('ZREM', KEYS[4], id)
      redis.call('UNLINK', ARGV[10] .. id)
      kept = kept - 1
    end
  end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[3])
local spent = tonumber(redis.call('HGET', KEYS[3], ARGV[5]) or '0')
redis.call('HSET', KEYS[3], ARGV[5], string.format('%.0f', math.max(spent, tonumber(ARGV[6]))))
redis.call('ZADD', KEYS[4], ARGV[7], ARGV[1])
redis.call('SADD', KEYS[5], ARGV[1])
for i = 11, #ARGV do redis.call('RPUSH', ARGV[10] .. ARGV[1], ARGV[i]) end
return {'ok', ''}
"""

# KEYS: records, queue, leases, seconds by tenant, the tenant's that have not ended, list
# ARGV: id, record before, record after, path, score in the queue ('' for none), end of the lease
#       ('' for none), tenant, ms to add, least ms of the tenant, 1 if it has ended, item...
_CHANGE = """
local before = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if before ~= ARGV[2] then return {'changed', ''} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
if ARGV[5] == '' then redis.call('ZREM', KEYS[2], ARGV[4])
else redis.call('ZADD', KEYS[2], ARGV[5], ARGV[4]) end
if ARGV[6] == '' then redis.call('ZREM', KEYS[3], ARGV[4])
else redis.call('ZADD', KEYS[3], ARGV[6], ARGV[4]) end
local spent = tonumber(redis.call('HGET', KEYS[4], ARGV[7]) or '0') + tonumber(ARGV[8])
redis.call('HSET', KEYS[4], ARGV[7], string.format('%.0f', math.max(spent, tonumber(ARGV[9]))))
if ARGV[10] == '1' then redis.call('SREM', KEYS[5], ARGV[1])
else redis.call('SADD', KEYS[5], ARGV[1]) end
for i = 11, #ARGV do redis.call('RPUSH', KEYS[6], ARGV[i]) end
return {'ok', ''}
"""

# A registry without memory lets work end or be cancelled, and whoever has its lease keep it. What
# grows with the work, such as metrics of steps, has no place there.
CHANGE = ALLOW_OOM + _CHANGE
CHANGE_THAT_GROWS = _CHANGE
