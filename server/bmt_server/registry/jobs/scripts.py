"""The Lua script of all changes of a job: compare the record, then change everything with it.

A job's state, its places in the queue and among the leases, its tenant's seconds and its events
change together or not at all, so a job ends once, with one event, whoever else tries.
"""

from __future__ import annotations

from bmt_server.registry.blobs.lua import ALLOW_OOM

# KEYS: jobs, queue, leases, seconds by tenant, jobs of the tenant, events, written
# ARGV: id, record before ('' for none), record after, path, score in the queue ('' for none),
#       end of the lease ('' for none), tenant, ms to add, least ms of the tenant, created, event...
CHANGE = """
local before = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if before ~= ARGV[2] then return {'changed', ''} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
if ARGV[5] == '' then redis.call('ZREM', KEYS[2], ARGV[4])
else redis.call('ZADD', KEYS[2], ARGV[5], ARGV[4]) end
if ARGV[6] == '' then redis.call('ZREM', KEYS[3], ARGV[4])
else redis.call('ZADD', KEYS[3], ARGV[6], ARGV[4]) end
local spent = tonumber(redis.call('HGET', KEYS[4], ARGV[7]) or '0') + tonumber(ARGV[8])
redis.call('HSET', KEYS[4], ARGV[7], string.format('%.0f', math.max(spent, tonumber(ARGV[9]))))
if before == '' then redis.call('ZADD', KEYS[5], ARGV[10], ARGV[1]) end
for i = 11, #ARGV do redis.call('RPUSH', KEYS[6], ARGV[i]) end
return {'ok', ''}
"""

# Ended jobs make room for new ones. KEYS: jobs, jobs of the tenant, events, written.
# ARGV: id, record
FORGET = (
    ALLOW_OOM
    + """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return {'changed', ''} end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('UNLINK', KEYS[3])
redis.call('HSET', KEYS[4], 'path', ARGV[1])
return {'ok', ''}
"""
)
