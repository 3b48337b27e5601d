"""Lua scripts of splits, in the form of `registry/lua.py`: checks first, then writes.

An alias, its canary and its shadow change in one script, so no reader sees a part of a change.
"""

from bmt_server.registry.blobs.lua import ALLOW_OOM
from bmt_server.registry.lua import ADD_EVENT, END_SPLIT

# Beginning of each script.
_READ = (
    ALLOW_OOM
    + ADD_EVENT
    + END_SPLIT
    + """
local alias = 'alias:' .. ARGV[2]
if redis.call('SISMEMBER', KEYS[3], ARGV[1]) == 0 then return {'unknown', ''} end
local current = redis.call('HGET', KEYS[1], alias) or ''
if ARGV[3] ~= '' and current ~= ARGV[3] then return {'conflict', current} end
local split = redis.call('HGET', KEYS[1], 'split:' .. ARGV[2]) or ''
local canary = redis.call('HGET', KEYS[1], 'canary:' .. ARGV[2]) or ''
local shadow = redis.call('HGET', KEYS[1], 'shadow:' .. ARGV[2]) or ''
local in_force = split ~= '' and string.match(split, '^[^|]*') == current
local function there(digest) return redis.call('HEXISTS', KEYS[2], digest) == 1 end
"""
)

# ARGV: path, alias, if-match, main digest, text of the split, digests of canary and shadow ('' for
# none)
SET_SPLIT = (
    _READ
    + """
for _, digest in ipairs({ARGV[4], ARGV[6], ARGV[7]}) do
  if digest ~= '' and not there(digest) then return {'unknown', ''} end
end
if current == ARGV[4] and split == ARGV[5] and canary == ARGV[6] and shadow == ARGV[7] then
  touch()
  return {'ok', current}
end
end_split(ARGV[2])
redis.call('HSET', KEYS[1], alias, ARGV[4], 'split:' .. ARGV[2], ARGV[5])
if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'canary:' .. ARGV[2], ARGV[6]) end
if ARGV[7] ~= '' then redis.call('HSET', KEYS[1], 'shadow:' .. ARGV[2], ARGV[7]) end
add_event('alias', '')
return {'ok', current}
"""
)

# ARGV: path, alias, if-match, digest that the canary must have ('' for any)
PROMOTE = (
    _READ
    + """
if current == '' then return {'unknown', ''} end
if not in_force or canary == '' or not there(canary) then return {'no_canary', current} end
if ARGV[4] ~= '' and canary ~= ARGV[4] then return {'other_canary', canary} end
end_split(ARGV[2])
redis.call('HSET', KEYS[1], alias, canary)
add_event('alias', '')
return {'ok', canary}
"""
)

# ARGV: path, alias, if-match
ROLL_BACK = (
    _READ
    + """
if current == '' then return {'unknown', ''} end
if end_split(ARGV[2]) == 0 then return {'no_split', current} end
add_event('alias', '')
return {'ok', current}
"""
)

# ARGV: path, alias, ''. Returns the digest of the canary, or else of the shadow, that ends.
END_VOID = (
    _READ
    + """
local gone = (canary ~= '' and not there(canary)) or (shadow ~= '' and not there(shadow))
if (in_force and not gone) or end_split(ARGV[2]) == 0 then
  touch()
  return {'unchanged', ''}
end
add_event('alias', '')
return {'ok', canary ~= '' and canary or shadow}
"""
)
